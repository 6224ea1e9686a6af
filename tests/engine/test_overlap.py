"""Steps that overlap give what others give; on a CPU all but the waiting is as on a GPU."""

import pytest
import torch
from engine_fakes import (
    FakeTokenizer,
    MemoryModel,
    ScriptedModel,
    greedy_reference,
    make_engine,
    run,
)
from test_llm_engine import EXPECTED, GREEDY
from test_llm_engine import WAYS as GREEDY_WAYS
from test_llm_engine import generate as generate_tokens
from test_mixed_params import REQUESTS, generate
from test_mixed_params import WAYS as MIXED_WAYS

from assembler.engine.build import _overlaps
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError

PROMPT = list(range(1, 14))


def greedy(count, **params):
    return SamplingParams(temperature=0, max_tokens=count, **params)


@pytest.mark.parametrize("way", GREEDY_WAYS.values(), ids=GREEDY_WAYS)
def test_the_same_greedy_tokens(way):
    engine = make_engine(MemoryModel(), overlap=True, **way)
    assert generate_tokens(engine, GREEDY) == EXPECTED


@pytest.fixture(scope="module")
def mixed():
    return generate(REQUESTS)


@pytest.mark.parametrize("way", MIXED_WAYS.values(), ids=MIXED_WAYS)
def test_the_same_of_every_parameter(way, mixed):
    assert generate(REQUESTS, overlap=True, **way) == mixed


def test_the_next_step_runs_before_the_tokens_of_the_last_are_read():
    engine = make_engine(MemoryModel(), overlap=True)
    engine.add_request("a", PROMPT, greedy(3))
    counts = []
    while not engine.is_finished():
        (output,) = engine.step()
        counts.append((len(output.outputs[0].token_ids), len(engine.model_runner.model.steps)))
    assert counts == [(1, 2), (2, 3), (3, 3)]  # the last token allowed is never run
    assert output.outputs[0].token_ids == greedy_reference(PROMPT, 3)


def test_a_stop_token_ends_a_sequence_whose_next_token_is_thrown_away():
    expected = greedy_reference(PROMPT, 6, by_length=False)
    place = next(i for i in range(2, 6) if expected[i] not in expected[:i])
    engine = make_engine(MemoryModel(by_length=False), overlap=True, page_size=1)
    engine.add_request("a", PROMPT, greedy(20, stop_token_ids=[expected[place]]))
    output = run(engine)["a"]
    assert output.outputs[0].token_ids == expected[: place + 1]
    assert output.outputs[0].finish_reason == "stop"
    assert len(engine.model_runner.model.steps) == place + 2
    assert engine.stats.num_generated_tokens == place + 1
    prompt = PROMPT + expected[: place + 1]
    engine.add_request("b", prompt, greedy(2))
    again = run(engine)["b"]
    assert again.outputs[0].token_ids == greedy_reference(prompt, 2, by_length=False)
    assert again.metrics.num_cached_tokens == len(PROMPT) + place  # not what was thrown away


def test_a_stop_string_ends_in_the_middle_of_a_step_in_flight():
    engine = make_engine(ScriptedModel([5, 1, 2, 3, 1, 2]), tokenizer=FakeTokenizer(), overlap=True)
    params = SamplingParams(stop="bc", max_tokens=6)
    engine.add_request("a", [1], params)
    output = run(engine)["a"].outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", "bc")


def test_pages_of_answers_are_known_once_their_tokens_are():
    prompt = PROMPT[:6]
    engine = make_engine(MemoryModel(by_length=False), overlap=True, page_size=4)
    engine.add_request("a", prompt, greedy(11))
    answer = run(engine)["a"].outputs[0].token_ids
    engine.add_request("b", prompt + answer, greedy(2))
    output = run(engine)["b"]
    assert output.metrics.num_cached_tokens == 16
    assert output.outputs[0].token_ids == greedy_reference(prompt + answer, 2, by_length=False)


def test_an_abort_throws_away_what_is_in_flight():
    engine = make_engine(MemoryModel(), overlap=True)
    engine.add_request("a", PROMPT, greedy(9))
    engine.add_request("b", PROMPT[::-1], greedy(9))
    engine.step()
    output = engine.abort("a")
    assert output.outputs[0].token_ids == greedy_reference(PROMPT, 1)
    engine.check_integrity()
    engine.add_request("a", PROMPT[:5], greedy(3))  # the same name: none of the other's tokens
    outputs = run(engine)
    assert outputs["a"].outputs[0].token_ids == greedy_reference(PROMPT[:5], 3)
    assert outputs["b"].outputs[0].token_ids == greedy_reference(PROMPT[::-1], 9)
    engine.add_request("c", PROMPT, greedy(9))
    engine.step()
    engine.abort("c")
    assert engine.is_finished() and engine.step() == []
    engine.add_request("d", PROMPT, greedy(2))
    (first,) = engine.step()
    assert first.outputs[0].token_ids == greedy_reference(PROMPT, 1)


@pytest.mark.parametrize("fails_at", [0, 1, 2, 4])
def test_a_failed_step_loses_no_token(fails_at):
    class Flaky(MemoryModel):
        def forward(self, input_ids, ctx):
            if len(self.steps) == fails_at:
                self.steps.append([])
                raise RuntimeError("the device is gone")
            return super().forward(input_ids, ctx)

    engine = make_engine(Flaky(), overlap=True)
    engine.add_request("a", PROMPT, greedy(6))
    failures, output = 0, None
    while not engine.is_finished():
        try:
            (output,) = engine.step()
        except RuntimeError:
            failures += 1
        engine.check_integrity()
    assert failures == 1
    assert output.outputs[0].token_ids == greedy_reference(PROMPT, 6)


def test_no_numbers_are_found_one_step_late_and_computed_anew():
    """What began behind pages of another is run again by itself; the token in flight is lost."""

    class Poisoned(ScriptedModel):
        poisoned = False

        def forward(self, input_ids, ctx):
            logits = super().forward(input_ids, ctx)
            if self.poisoned and len(logits):
                self.poisoned = False
                logits[:] = torch.nan
            return logits

    model = Poisoned([9, 8, 7, 6, 5, 4, 3, 2, 1])
    engine = make_engine(model, overlap=True, page_size=2)
    engine.add_request("a", [1, 1, 1], greedy(2))
    run(engine)
    engine.add_request("b", [1, 1, 1], greedy(4))
    model.poisoned = True
    output = run(engine)["b"]
    assert output.metrics.num_cached_tokens == 2
    assert output.error is None and output.outputs[0].token_ids == [7, 6, 5, 4]
    engine.add_request("c", [2, 2, 2], greedy(4))
    model.poisoned = True
    failed = run(engine)["c"]
    assert failed.outputs[0].finish_reason == "abort" and failed.outputs[0].token_ids == []
    assert "after 3 tokens are not numbers" in str(failed.error)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"repetition_penalty": 1.3}, "penalties"),
        ({"logprobs": 2}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"bad_words": ["ab"]}, "bad_words"),
        ({"min_tokens": 5, "stop_token_ids": [3]}, None),
        ({"logit_bias": {3: 1.0}}, None),
        ({"temperature": 1.0, "top_k": 5, "seed": 1}, None),
    ],
)
def test_the_log_says_once_which_steps_do_not_overlap(params, reason, caplog):
    caplog.set_level("INFO", "assembler.engine.overlap")
    engine = make_engine(MemoryModel(), tokenizer=FakeTokenizer(), overlap=True)
    params = greedy(6, ignore_eos=True).model_copy(update=params)
    engine.add_request("a", PROMPT, params)
    engine.step()
    assert len(engine.model_runner.model.steps) == (2 if reason is None else 1)
    run(engine)
    engine.add_request("b", PROMPT, params)
    run(engine)
    told = [record.message for record in caplog.records]
    assert len(told) == (reason is not None) and all(f"with {reason} do not" in t for t in told)


def test_requests_that_wait_and_others_share_steps():
    """The last token of the others is put in place on the device for a step read at once."""
    engine = make_engine(MemoryModel(), overlap=True)
    engine.add_request("a", PROMPT, greedy(9))
    engine.step()
    engine.add_request("b", PROMPT[:7], greedy(4, logprobs=0))
    outputs = run(engine)
    assert outputs["a"].outputs[0].token_ids == greedy_reference(PROMPT, 9)
    assert outputs["b"].outputs[0].token_ids == greedy_reference(PROMPT[:7], 4)
    assert len(outputs["b"].outputs[0].logprobs) == 4


def test_ranks_run_each_step_together():
    cpu, cuda, ranks = torch.device("cpu"), torch.device("cuda"), object()
    assert [_overlaps(None, *on) for on in ((cpu, None), (cuda, None), (cuda, ranks))] == [
        False,
        True,
        False,
    ]
    assert not _overlaps(False, cuda, None) and _overlaps(True, cpu, None)
    with pytest.raises(OptionError, match="tensor_parallel_size=1"):
        _overlaps(True, cpu, ranks)
