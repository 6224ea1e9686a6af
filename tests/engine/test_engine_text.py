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
    while not engine.is_finished():
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


# What ended it, and whether the text includes that --------------------------------------------


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, None),  # the end of sequence
        ({"stop": ["q", "He"]}, "He"),
        ({"stop_token_ids": [10, 5]}, 10),
        ({"stop_token_ids": [0]}, None),  # the end of sequence all the same
        ({"stop_token_ids": [0], "ignore_eos": True}, 0),
    ],
)
def test_the_stop_reason(params, reason):
    done = complete([9, 10, 0, 7], eager=True, max_tokens=4, **params)
    assert (done.finish_reason, done.stop_reason) == ("stop", reason)


def test_other_ends_have_no_stop_reason():
    done = complete([9, 10, 8], max_tokens=2, stop=["x"], stop_token_ids=[8])
    assert (done.finish_reason, done.stop_reason) == ("length", None)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("script", "params", "text"),
    [
        ([9, 10, 8, 7, 1, 1], {"stop": [" z"]}, "Hello z"),
        ([9, 10, 8, 7, 1, 1], {"stop": ["el"]}, "Hel"),  # what the token says after it is cut
        ([9, 10, 7, 1], {"stop_token_ids": [7]}, "Helloz"),
        ([9, 10, 0, 1], {}, "Hello"),  # a special token
        ([9, 10, 0, 1], {"skip_special_tokens": False}, "Hello<eos>"),
        ([9, 10, 7, 1], {"stop_token_ids": [7], "stop": ["oz"]}, "Helloz"),
    ],
)
def test_the_text_may_include_what_ends_it(script, params, text, eager):
    done = complete(script, eager, include_stop_str_in_output=True, **params)
    assert (done.text, done.finish_reason) == (text, "stop")


def test_special_tokens_are_text_if_asked_for():
    script = [9, 0, 10, 7]
    params = {"ignore_eos": True, "max_tokens": 4}
    assert complete(script, **params).text == "Helloz"
    assert complete(script, **params, skip_special_tokens=False).text == "He<eos>lloz"


# min_tokens -----------------------------------------------------------------------------------


class Eager(ScriptedModel):
    """Says `script`, and token 7 where that may not be."""

    def forward(self, input_ids, ctx):
        logits = super().forward(input_ids, ctx)
        logits[:, 7] += 1.0
        return logits


@pytest.mark.parametrize("params", [{}, {"stop_token_ids": [3]}, {"ignore_eos": True}])
def test_no_end_of_sequence_before_min_tokens(params):
    engine = make_engine(Eager([0, 3, 0, 0, 0]), tokenizer=FakeTokenizer(eager=True))
    wanted = SamplingParams(temperature=0, min_tokens=2, max_tokens=4, **params)
    engine.add_request("a", "a", wanted)
    done = run(engine)["a"].outputs[0]
    second = 7 if "stop_token_ids" in params else 3
    expected = [7, second, 0, 0] if params.get("ignore_eos") else [7, second, 0]
    assert done.token_ids == expected


@pytest.mark.parametrize(
    ("min_tokens", "text", "count"),
    [
        (0, "H", 2),
        (1, "H", 2),  # completed by the second token, after one
        (2, "HellobH", 5),  # the first "ello" was let pass
        (4, "HellobH", 5),
        (5, "HellobHelloa", 6),
    ],
)
def test_no_stop_string_before_min_tokens(min_tokens, text, count):
    script = [9, 10, 2, 9, 10, 1]
    done = complete(script, eager=True, stop=["ello"], min_tokens=min_tokens, max_tokens=6)
    assert (done.text, done.token_ids) == (text, script[:count])
    assert done.finish_reason == ("length" if min_tokens == 5 else "stop")


# Rules of tokens, through the tokenizer -------------------------------------------------------


def test_bad_words_in_both_spellings():
    """ "ab" is the tokens 1 2, and after a space 8 1 2."""
    script = [1, 2, 1, 2, 0]
    assert complete(script).text == "abab"
    engine = make_engine(Eager(script), tokenizer=FakeTokenizer(eager=True))
    engine.add_request("a", "a", SamplingParams(temperature=0, bad_words=["ab", "c"]))
    done = run(engine)["a"].outputs[0]
    assert done.token_ids[:4] == [1, 7, 1, 7]


def test_allowed_tokens_and_biases():
    engine = make_engine(Eager([9, 9, 9]), tokenizer=FakeTokenizer(eager=True))
    allowed = SamplingParams(temperature=0, max_tokens=2, allowed_token_ids=[7, 8])
    biased = SamplingParams(temperature=0, max_tokens=2, logit_bias={10: 100})
    engine.add_request("allowed", "a", allowed)
    engine.add_request("biased", "a", biased)
    outputs = run(engine)
    assert outputs["allowed"].outputs[0].text == "zz"
    assert outputs["biased"].outputs[0].text == "llollo"


def test_a_request_that_allows_nothing_fails_alone():
    engine = make_engine(ScriptedModel([9, 10, 7, 7]), tokenizer=FakeTokenizer(eager=True))
    params = SamplingParams(temperature=0, allowed_token_ids=[0], min_tokens=2)
    engine.add_request("bad", "a", params)
    engine.add_request("good", "a", SamplingParams(temperature=0, max_tokens=2))
    outputs = run(engine)
    assert outputs["good"].outputs[0].text == "Hello"
    assert outputs["bad"].outputs[0].finish_reason == "abort"
    assert "'bad': no token may follow after 1 tokens" in str(outputs["bad"].error)
