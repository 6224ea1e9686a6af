"""Where a request's text ends: stop strings, stop tokens, the end of sequence, lengths."""

import pytest
from engine_fakes import FakeTokenizer, ScriptedModel, make_engine, run

from assembler.engine.sampling_params import SamplingParams

# 1 "a", 2 "b", 3 "c", 4 "ab", 5 "bc", 6 "xy", 7 "z", 8 " ", 9 "He", 10 "llo", 11 "\n\n", 0 eos


def complete(script, eager=False, **params):
    """The completion of a prompt of one token by a model that says `script`, and all its texts."""
    engine = make_engine(ScriptedModel(script), tokenizer=FakeTokenizer(eager))
    params.setdefault("max_tokens", None)
    engine.add_request("a", "a", SamplingParams(temperature=0, **params))
    texts = []
    while engine.has_unfinished_requests():
        (output,) = engine.step()
        texts.append(output.outputs[0].text)
    run(engine)
    assert output.prompt == "a" and output.prompt_token_ids == [1]
    assert all(output.outputs[0].text.startswith(text) for text in texts), "text was taken back"
    return output.outputs[0]


def test_text_is_that_of_all_tokens():
    done = complete([9, 10, 8, 7, 7], max_tokens=5)
    assert (done.text, done.finish_reason) == ("Hello zz", "length")
    assert done.token_ids == [9, 10, 8, 7, 7]


def test_eos_ends_the_text_and_is_no_part_of_it():
    done = complete([9, 10, 0, 7])
    assert (done.text, done.token_ids, done.finish_reason) == ("Hello", [9, 10, 0], "stop")


def test_eos_may_be_ignored():
    done = complete([9, 0, 10, 0], ignore_eos=True, max_tokens=3)
    assert (done.text, done.token_ids, done.finish_reason) == ("Hello", [9, 0, 10], "length")


def test_the_text_of_a_stop_token_is_left_out():
    done = complete([9, 10, 7, 1], stop_token_ids=[7], ignore_eos=True)
    assert (done.text, done.token_ids, done.finish_reason) == ("Hello", [9, 10, 7], "stop")


@pytest.mark.parametrize(
    ("script", "stop", "text", "tokens"),
    [
        ([9, 10, 8, 7, 1], [" z"], "Hello", 5),  # " " was held back until "z" came
        ([9, 10, 8, 7, 1], ["llo"], "He", 3),  # one whole token
        ([9, 10, 8, 7, 1], ["el"], "H", 3),  # ends inside a token
        ([1, 2, 3, 7, 7], ["zz", "bc"], "a", 4),  # the first that is complete
        ([4, 5, 4, 7, 1], ["bca"], "ab", 4),  # over three tokens
        ([9, 11, 11, 7, 7], ["\n\n\n"], "He", 4),
    ],
)
def test_stop_strings_across_token_borders(script, stop, text, tokens):
    done = complete([*script, 7, 7, 7, 7], stop=stop, max_tokens=9)
    assert (done.text, done.finish_reason) == (text, "stop")
    # The fake detokenizer gives a token's text out one token later, hence one token more.
    assert done.token_ids == script[:tokens]


def test_what_was_held_back_comes_out_at_the_end():
    done = complete([9, 10, 8], stop=[" z"], max_tokens=3)
    assert (done.text, done.finish_reason) == ("Hello ", "length")


@pytest.mark.parametrize("eager", [False, True])
def test_a_stop_string_in_the_very_last_text_is_a_stop(eager):
    done = complete([9, 10, 8, 7], eager, stop=[" z"], max_tokens=4)
    assert (done.text, done.finish_reason) == ("Hello", "stop")


def test_a_stop_string_of_the_prompt_does_not_count():
    done = complete([2, 3, 7], stop=["ab"], max_tokens=3)
    assert (done.text, done.finish_reason) == ("bcz", "length")


def test_max_tokens_none_goes_to_the_length_of_the_model():
    done = complete([7] * 200)
    assert len(done.token_ids) == 199 and done.finish_reason == "length"


def test_an_aborted_request_keeps_its_text():
    engine = make_engine(ScriptedModel([9, 10, 8, 7]), tokenizer=FakeTokenizer())
    engine.add_request("a", "a", SamplingParams(temperature=0, stop=[" z"]))
    for _ in range(3):
        engine.step()
    output = engine.abort("a")
    assert output.outputs[0].text == "Hello "
    assert output.outputs[0].finish_reason == "abort"
