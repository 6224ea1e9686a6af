"""What fails in one request ends that request alone, and at once."""

import pytest
import torch
from engine_fakes import VOCAB, BreakingTokenizer, FakeTokenizer, ScriptedModel, make_engine, run

from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError


def test_nan_logits_fail_one_request_and_the_engine_lives_on():
    engine = make_engine(ScriptedModel([1, 2, 3, 4, None, 6, 7, 8]))
    engine.add_request("good", [1, 1], SamplingParams(max_tokens=2))
    engine.add_request("bad", [1, 1, 1], SamplingParams(max_tokens=5))
    outputs = run(engine)
    assert outputs["good"].outputs[0].token_ids == [2, 3] and outputs["good"].error is None
    bad = outputs["bad"]
    assert bad.finished and bad.outputs[0].finish_reason == "abort"
    assert bad.outputs[0].token_ids == [3, 4]
    assert isinstance(bad.error, RequestError)
    assert "'bad'" in str(bad.error) and "after 5 tokens" in str(bad.error)
    engine.add_request("bad", [1], SamplingParams(max_tokens=1))
    assert run(engine)["bad"].outputs[0].token_ids == [1]


def test_a_failing_sample_ends_the_samples_that_wait():
    """Alone it would be an unfinished request with an error, until the others get pages again."""
    engine = make_engine(ScriptedModel([1, 2, 3, 4, None, 6]), num_pages=3, page_size=2)
    engine.add_request("bad", [1, 1, 1], SamplingParams(n=2, max_tokens=3))
    ends = [output for _ in range(20) for output in engine.step() if output.error is not None]
    assert [output.finished for output in ends] == [True]
    assert [sample.finish_reason for sample in ends[0].outputs] == ["abort", "abort"]
    assert engine.scheduler.num_preemptions and engine.is_finished()
    engine.check_integrity()


def test_a_tokenizer_that_fails_on_logprobs_fails_their_request_alone():
    class Broken(FakeTokenizer):
        def decode(self, token_ids, skip_special_tokens=True):
            if 7 in token_ids and not skip_special_tokens:  # as logprobs are described
                raise KeyError("no piece 7")
            return super().decode(token_ids, skip_special_tokens)

    engine = make_engine(ScriptedModel([1, 2, 7, 4, 5, 6]), tokenizer=Broken())
    engine.add_request("bad", [1], SamplingParams(max_tokens=5, logprobs=0, ignore_eos=True))
    engine.add_request("good", [1], SamplingParams(max_tokens=5, ignore_eos=True))
    outputs = run(engine)
    assert outputs["good"].error is None and len(outputs["good"].outputs[0].token_ids) == 5
    assert "KeyError: 'no piece 7'" in str(outputs["bad"].error)
    assert [
        logprobs[token].decoded_token
        for token, logprobs in zip((1, 2), outputs["bad"].outputs[0].logprobs, strict=True)
    ] == ["a", "b"]
    engine.check_integrity()


class _ByDraw(ScriptedModel):
    """Sample i gets token script[i][p] after position p."""

    def __init__(self, scripts):
        super().__init__([])
        self.scripts = scripts

    def forward(self, input_ids, ctx):
        count = len(self.scripts)
        positions = ctx.positions if ctx.logit_rows is None else ctx.positions[ctx.logit_rows]
        logits = torch.zeros(len(positions), VOCAB)
        for row, position in enumerate(positions.tolist()):
            token_id = self.scripts[row % count][position]
            if token_id is None:
                logits[row, 3] = torch.nan
            else:
                logits[row, token_id] = 500.0
        return logits


@pytest.mark.parametrize(("failing", "stream"), [(None, True), (None, False), (7, True)])
def test_a_failing_sample_changes_no_end_of_its_siblings(failing, stream):
    """One has stopped before, one ends in the same step, one fails and one still runs."""
    scripts = [[1, 9, 9, 9, 9], [1, 2, failing, 4, 5], [1, 2, 9, 9, 9], [1, 2, 3, 4, 5]]
    model = _ByDraw(scripts)
    engine = make_engine(model, tokenizer=BreakingTokenizer(), max_num_seqs=4)
    params = SamplingParams(n=4, max_tokens=5, stop_token_ids=[9], seed=0)
    engine.add_request("r", [1], params, stream=stream)
    seen = []
    while not engine.is_finished():
        seen += engine.step()
        running = [sequence.index for sequence in engine.scheduler.running]
        model.scripts = [scripts[index] for index in running] or scripts
        engine.check_integrity()
    last = seen[-1]
    assert last.finished and ("KeyError" if failing else "not numbers") in str(last.error)
    assert [sample.finish_reason for sample in last.outputs] == ["stop", "abort", "stop", "abort"]
    text = "a" if failing else "ab"  # as far as it could be decoded
    assert [sample.text for sample in last.outputs] == ["a", text, "ab", "abc"]
    told = [(sample.index, sample.finish_reason) for o in seen[:-1] for sample in o.outputs]
    assert ((0, "stop") in told) == stream
