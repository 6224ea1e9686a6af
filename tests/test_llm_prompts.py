"""`LLM`: the forms of a prompt, and conversations with options of the chat template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import chatml, save_llama

from assembler import LLM, RequestOutput, SamplingParams
from assembler.errors import OptionError, RequestError, TokenizerError

GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
IDS = [39, 68, 75, 75, 78]
QUESTION = [{"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %};{% endif %}"
    "{% endfor %}{% if tools %} {{ tools | length }} tools{% endif %}"
    "{% if enable_thinking is defined %} thinking={{ enable_thinking }}{% endif %}"
    "{% if add_generation_prompt %} answer:{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return LLM(folder)


def prompts_of(outputs: list[RequestOutput]) -> list[tuple[str | None, list[int]]]:
    return [(output.prompt, output.prompt_token_ids) for output in outputs]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"prompt": "Hello"}, ["Hello"]),
        ({"prompt_token_ids": IDS}, [IDS]),
        ([{"prompt": "Hello"}, "a", {"prompt_token_ids": IDS}, IDS], ["Hello", "a", IDS, IDS]),
        (torch.tensor(IDS), [IDS]),
        ([torch.tensor(IDS), np.array(IDS, np.int32)], [IDS, IDS]),
        (torch.tensor([IDS, IDS]), [IDS, IDS]),
        ({"prompt_token_ids": torch.tensor(IDS)}, [IDS]),
        (tuple(IDS), [IDS]),
    ],
)
def test_forms_of_prompts(prompts: Any, expected: list[str | list[int]], llm: LLM):
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert prompts_of(outputs) == [
        (p, llm.get_tokenizer().encode(p)) if isinstance(p, str) else (None, p) for p in expected
    ]
    if not isinstance(prompts, list | torch.Tensor):
        [*_, last] = llm.stream(prompts, GREEDY)
        assert last.outputs == outputs[0].outputs


def test_a_text_may_go_with_its_token_ids(llm: LLM):
    [output] = llm.generate({"prompt": "five", "prompt_token_ids": IDS}, GREEDY, use_tqdm=False)
    assert (output.prompt, output.prompt_token_ids) == ("five", IDS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (b"Hello", r"not bytes: decode it, prompt\.decode\(\)"),
        (["a", b"Hello"], "prompt 1: .*not bytes"),
        ({"prompts": "Hello"}, r"there is no 'prompts' in it\. Did you mean 'prompt'"),
        ({"prompt": "a", "multi_modal_data": {}}, "there is no 'multi_modal_data' in it"),
        (["a", {}], 'prompt 1: a prompt is .*; "prompt" is None'),
        ({"prompt": [1, 2]}, r'"prompt" is \[1, 2\]'),
        ({"prompt_token_ids": "Hello"}, "a prompt is a text, a list of token ids"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ({"prompt_token_ids": b"ab"}, "a prompt is a text, a list of token ids"),
        (torch.tensor([1.5]), "a prompt is a text or a list of token ids"),
        (torch.tensor(3), "not an array of 0 dimensions"),
        (torch.tensor([[[1]]]), "not an array of 2 dimensions"),
    ],
)
def test_what_is_no_prompt(prompts: Any, message: str, llm: LLM):
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.is_finished()


# chat -------------------------------------------------------------------------------------------


def test_the_text_of_a_chat_is_reported(llm: LLM):
    [output] = llm.chat(QUESTION, GREEDY, use_tqdm=False)
    assert output.prompt == chatml("Hi")
    assert output.prompt_token_ids == llm.chat_prompt(QUESTION)
    assert output.prompt_token_ids == llm.get_tokenizer().encode_chat(QUESTION)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "user: Hi answer:"),
        ({"add_generation_prompt": False}, "user: Hi"),
        ({"continue_final_message": True}, "user: Hi"),
        ({"tools": [{"name": "f"}, {"name": "g"}]}, "user: Hi 2 tools answer:"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            "user: Hi thinking=False answer:",
        ),
        ({"chat_template_kwargs": None, "tools": None}, "user: Hi answer:"),
    ],
)
def test_options_of_a_chat(options: dict[str, Any], text: str, llm: LLM):
    options = {"chat_template": TEMPLATE, **options}
    [output] = llm.chat(QUESTION, GREEDY, use_tqdm=False, **options)
    assert output.prompt == text
    assert llm.chat_prompt(QUESTION, **options) == llm.get_tokenizer().encode(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool": []}, r"unknown option 'tool'\. Did you mean 'tools'"),
        ({"enable_thinking": False}, "'enable_thinking': here it goes into chat_template_kwargs"),
        ({"add_generation_prompt": 1}, "add_generation_prompt=1"),
        ({"chat_template_kwargs": {"tools": []}}, "tools cannot be among them"),
        ({"tools": "f"}, "tools='f'"),
    ],
)
def test_wrong_options_of_a_chat(options: dict[str, Any], message: str, llm: LLM):
    with pytest.raises(OptionError, match=message):
        llm.chat(QUESTION, GREEDY, use_tqdm=False, **options)


def test_what_the_template_cannot_do(llm: LLM):
    with pytest.raises(RequestError, match="does not read 'enable_thinking'"):
        llm.chat(QUESTION, chat_template_kwargs={"enable_thinking": False}, use_tqdm=False)
    with pytest.raises(RequestError, match="set one of them to False"):
        llm.chat(QUESTION, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(TokenizerError, match="there is no chat template 'rag'"):
        llm.chat(QUESTION, chat_template="rag")


def test_malformed_conversations_are_named(llm: LLM):
    with pytest.raises(RequestError) as error:
        llm.chat([QUESTION, [{"role": "user"}], QUESTION, []], GREEDY, use_tqdm=False)
    assert str(error.value).splitlines() == [
        "conversation 1: messages[0] has no content",
        "conversation 3: messages is empty: a conversation has at least one message",
    ]
    assert llm.is_finished()
