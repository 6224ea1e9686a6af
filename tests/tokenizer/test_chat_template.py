"""`ChatTemplate` against transformers' `apply_chat_template`, and its errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, GEMMA, LLAMA3, MISTRAL, PARTS
from tokenizer_builders import byte_level, smollm_split
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assembler.errors import RequestError, TokenizerError
from assembler.tokenizer import ChatTemplate, Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "parts": PARTS}

USER = {"role": "user", "content": "  What is <the> 'capital' of \"France\"? 中文 😀\n"}
ASSISTANT = {"role": "assistant", "content": "Paris.\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "get", "description": "<é & 'x'>"}}
TEXT_PART = {"type": "text", "text": "a"}
CALL = {"type": "function", "function": {"name": "get", "arguments": {"city": "Zürich <b>"}}}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    backend = byte_level(smollm_split())
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def render(
    template: str, messages: list[dict[str, Any]], prompt: bool = True, **kwargs: Any
) -> str:
    return ChatTemplate(template, SPECIAL).render(messages, prompt, **kwargs)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [[USER], [USER, ASSISTANT, USER]], ids=["one", "three"])
def test_equals_transformers(
    reference: PreTrainedTokenizerFast, name: str, messages: list[dict[str, Any]], prompt: bool
) -> None:
    expected = reference.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=prompt,
    )
    assert render(TEMPLATES[name], messages, prompt) == expected


@pytest.mark.parametrize(
    ("template", "messages", "options"),
    [
        (CHATML, [SYSTEM, USER], {"enable_thinking": False}),
        (CHATML, [SYSTEM, USER], {"enable_thinking": True}),
        (LLAMA3, [SYSTEM, USER], {"date_string": "1 Jan 2030"}),
        (LLAMA3, [SYSTEM, USER], {"bos_token": "<other>"}),
        (LLAMA3, [USER], {"tools": [TOOL]}),
        (LLAMA3, [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], {}),
        (LLAMA3, [USER, {"role": "tool", "content": "[1, 2]", "name": None}], {}),
        (PARTS, [{"role": "user", "content": [TEXT_PART, {"type": "image"}]}], {}),
        (PARTS, [{**ASSISTANT, "reasoning": "because"}], {"documents": [{"title": "t"}]}),
        (PARTS, [{**ASSISTANT, "thinking": "x", "reasoning_content": "y"}], {}),
        ("{{ strftime_now('%Y') }}{{ (1, 2) | tojson(separators=(',', ':')) }}", [USER], {}),
        ("{{ namespace(a='b').a }}\n   {% if true %}\n  x\n   {% endif %}\ny\n", [USER], {}),
    ],
)  # fmt: skip
def test_options_and_other_messages_equal_transformers(
    reference: PreTrainedTokenizerFast,
    template: str,
    messages: list[dict[str, Any]],
    options: dict[str, Any],
) -> None:
    expected = reference.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
    )
    assert render(template, messages, **options) == expected


@pytest.mark.parametrize(
    ("name", "begun"),
    [
        *((name, "The answer is") for name in ("chatml", "llama3", "mistral")),
        *((name, "  It is \n") for name in ("chatml", "llama3", "mistral")),  # some trim it
        ("parts", [{"type": "text", "text": "One"}, {"type": "text", "text": "and two"}]),
    ],
)
def test_a_message_to_be_continued_equals_transformers(
    reference: PreTrainedTokenizerFast, name: str, begun: Any
) -> None:
    first = {"role": "user", "content": [TEXT_PART] if name == "parts" else "What?"}
    messages = [first, {"role": "assistant", "content": begun}]
    expected = reference.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    assert render(TEMPLATES[name], messages, False, continue_final_message=True) == expected


def test_messages_that_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="set one of them to False"):
        render(CHATML, [USER, ASSISTANT], True, continue_final_message=True)
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    image = {"role": "user", "content": [{"type": "image"}]}
    for template, last in ((LLAMA3, call), (PARTS, image)):
        with pytest.raises(RequestError, match="the last message has no text to continue"):
            render(template, [last], False, continue_final_message=True)
    with pytest.raises(RequestError, match="the chat template leaves out the last message"):
        render("{{ messages[0].role }}", [USER], False, continue_final_message=True)


def test_the_source_of_a_template_may_be_given(folders: dict[str, Path]) -> None:
    given = "{{ bos_token }}{{ messages[0].role }}"
    assert ChatTemplate("d", SPECIAL).render([USER], chat_template=given) == "<s>user"
    bare = Tokenizer.from_folder(folders["smollm"])
    assert bare.apply_chat_template([USER], chat_template=given) == "<s>user"
    assert not bare.has_chat_template
    with pytest.raises(TokenizerError, match="chat template that was given, line 1: "):
        bare.apply_chat_template([USER], chat_template="{% if %}")
    with pytest.raises(TokenizerError, match="pass chat_template=SOURCE"):
        bare.apply_chat_template([USER])


def test_named_templates() -> None:
    named = ChatTemplate({"default": "d", "tool_use": "t{{ tools | length }}", "rag": "r"})
    assert named.names == ("default", "rag", "tool_use")
    assert named.render([USER]) == "d"
    assert named.render([USER], tools=[TOOL]) == "t1"
    assert named.render([USER], chat_template="rag") == "r"
    with pytest.raises(TokenizerError, match=r"no chat template 'rug'\. Did you mean 'rag'\?"):
        named.render([USER], chat_template="rug")
    with pytest.raises(TokenizerError, match="no chat template 'default'"):
        ChatTemplate({"rag": "r"}).render([USER])


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_where_a_folder_keeps_its_templates(folders: dict[str, Path], tmp_path: Path) -> None:
    """From the weakest place to the strongest; transformers' tokenizers do not read the first."""
    folder = shutil.copytree(folders["smollm"], tmp_path / "model")
    with pytest.raises(TokenizerError, match="the model has no chat template"):
        Tokenizer.from_folder(folder).apply_chat_template([USER])

    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert Tokenizer.from_folder(folder).apply_chat_template([USER]) == "processor"

    def both(**options: Any) -> str:
        theirs = AutoTokenizer.from_pretrained(folder)
        expected = theirs.apply_chat_template([USER], tokenize=False, **options)
        ours = Tokenizer.from_folder(folder).apply_chat_template([USER], False, **options)
        assert ours == expected
        return ours

    write_config(folder, chat_template="config {{ bos_token }}")
    assert both() == "config <s>"
    named = [{"name": "default", "template": "list"}, {"name": "rag", "template": "list rag"}]
    write_config(folder, chat_template=named)
    assert both() == "list"
    assert both(chat_template="rag") == "list rag"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].role }}")
    assert both() == "file user"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        "tools {{ tools[0].type }}"
    )
    assert both() == "file user"
    assert both(tools=[TOOL]) == "tools function"


def test_ids_of_a_conversation_equal_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama2"], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(MISTRAL)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template([USER, ASSISTANT])
    ids = Tokenizer.from_folder(folder).encode_chat([USER, ASSISTANT])
    assert ids == expected["input_ids"]
    assert ids[:2].count(1) == 1  # one beginning of sequence, the template's


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "must be a list of {role, content} objects, not a str"),
        ({"role": "user", "content": "x"}, "not a dict"),
        ([], "messages is empty"),
        ([[USER]], r"messages\[0\] is a list, not a {role, content} object"),
        ([USER, {"content": "x"}], r"messages\[1\] has no role"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content is a int"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] is a str, not an object"),
        ([{**USER, "image": object()}], r"messages\[0\]\.image is a object; .* plain data"),
        ([{"role": "x"}, "y"], r"messages\[0\] has no content\nmessages\[1\] is a str"),
    ],
)  # fmt: skip
def test_malformed_messages(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        render(CHATML, messages)


def test_the_template_s_own_refusal_reaches_the_user() -> None:
    with pytest.raises(RequestError, match="refuses the messages: System role not supported"):
        render(GEMMA, [SYSTEM, USER])
    with pytest.raises(RequestError, match="roles must alternate"):
        render(MISTRAL, [USER, USER])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{ messages[0].x.y }}", "line 2, fails on the messages: UndefinedError: .*'x'"),
        ("{{ messages[0].content + 1 }}", "line 1, fails on the messages: TypeError"),
    ],
)
def test_failures_name_the_line_of_the_template(template: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        render(template, [USER])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "chat template 'default', line 2: Expected an expression"),
        ("{{ messages | nonsense }}", "line 1: No filter named 'nonsense'"),
        ("{{ messages.append(1) }}", "not safe to run"),
        ("{{ ''.__class__.__mro__ }}", "not safe to run"),
        ("{{ cycler.__init__.__globals__ }}", "not safe to run"),
        ("{% set ns = namespace(__x=1) %}", "not safe to run: a namespace cannot hold '__x'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "a namespace cannot hold '_x'"),
    ],
)
def test_broken_and_hostile_templates(template: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        render(template, [USER])


def test_what_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(RequestError, match=r"does not read 'enable_thinkin'.* 'enable_thinking'"):
        render(CHATML, [USER], enable_thinkin=False)
    with pytest.raises(RequestError, match="the chat template does not read 'tools'"):
        render(GEMMA, [USER], tools=[TOOL])


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "x", "name": None, "reasoning": "y"}]
    render(CHATML, messages)
    assert messages == [{"role": "user", "content": "x", "name": None, "reasoning": "y"}]
