"""`python -m assembler.generate`: the text, the prompts and the files of prompts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_runs import SUMMARY, Run, refused
from tiny_llama import (
    chatml,
    greedy,
)
from transformers import AutoTokenizer, LlamaForCausalLM

from assembler import LLM, SamplingParams, generate


def test_the_text_alone_is_on_stdout(run: Run, tiny: Path, reference: LlamaForCausalLM):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    expected = greedy(reference, tokenizer.encode(chatml("Who are you?")), 24)
    result = run(generate, f"checkpoint={tiny}", "prompt=Who are you?", "max_tokens=24")
    assert result.status == 0
    assert result.out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    assert SUMMARY.fullmatch(result.err), result.err
    prompt = len(tokenizer.encode(chatml("Who are you?")))
    assert result.err.startswith(f"{prompt} prompt + {len(expected)} generated tokens, ")


def test_gguf_gives_the_text_of_the_same_weights(run: Run, tiny: Path, home: Path):
    arguments = ("prompt=Hello there", "max_tokens=16")
    folder = run(generate, f"checkpoint={tiny}", *arguments)
    file = run(generate, f"checkpoint={home / 'tiny.gguf'}", *arguments)
    assert folder.status == file.status == 0
    assert folder.out == file.out and len(folder.out) > 1


PROMPTS = [
    "Hello, world!",
    "it's \"quoted\" 'twice'",
    "a=b==c",
    "# no comment & no job | > <",
    "${x} ${oc.env:HOME} $HOME $(ls)",
    "back\\slash \\' \\\\",
    "[1, 2] {a: b} (c)",
    "naïve 日本語 🐉 e\u0301",
    " leading, trailing and\n\nnew lines\t ",
    "123",
    "1e3",
    "null",
    "true",
    "False",
    "???",
    "--help me",
    "-m",
    "a,b",
    "${",
    "",
]


@pytest.mark.parametrize("text", PROMPTS)
def test_prompts_are_taken_literally(text: str, run: Run, tiny: Path, asked: list):
    result = run(generate, f"checkpoint={tiny}", f"prompt={text}", f"system={text}", "max_tokens=1")
    assert result.status == 0, result.err
    assert [prompt for prompt, _ in asked] == [chatml(text, text)]


def test_prompt_from_stdin(run: Run, tiny: Path, asked: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines, 'x'\n"))
    assert run(generate, f"checkpoint={tiny}", "prompt=-", "max_tokens=1").status == 0
    assert asked[0][0] == chatml("two\nlines, 'x'")
    broken = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", broken)
    refused(run(generate, f"checkpoint={tiny}", "prompt=-"), "prompt=-: stdin cannot be read: .*e9")


@pytest.mark.parametrize(
    ("chat", "expected"),
    [("chat=true", chatml("Hi")), ("chat=auto", chatml("Hi")), ("chat=false", "Hi")],
)
def test_chat(chat: str, expected: str, run: Run, tiny: Path, asked: list):
    assert run(generate, f"checkpoint={tiny}", "prompt=Hi", chat, "max_tokens=1").status == 0
    assert asked[0][0] == expected


def test_a_model_without_a_chat_template(run: Run, copy: Path, asked: list):
    (copy / "chat_template.jinja").unlink()
    assert run(generate, f"checkpoint={copy}", "prompt=Hi", "max_tokens=1").status == 0
    assert asked[0][0] == "Hi"
    arguments = (f"checkpoint={copy}", "prompt=Hi")
    refused(run(generate, *arguments, "chat=true"), "no chat template")
    refused(run(generate, *arguments, "system=Be brief"), "system= needs a chat")
    refused(run(generate, f"checkpoint={copy}", "prompt="), "the prompt is empty")


# Files of prompts -------------------------------------------------------------------------------

QUESTIONS = ["One?", "Two, 'three'?", "  four\u2028five  ", "12"]


def answers(tiny: Path, questions: Sequence[str], **params: Any) -> list[str]:
    llm = LLM(tiny)
    ids = [llm.chat_prompt([{"role": "user", "content": q}]) for q in questions]
    outputs = llm.generate(ids, SamplingParams(temperature=0.0, **params), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_prompts_of_a_text_file(ends: str, run: Run, tiny: Path, tmp_path: Path):
    file = tmp_path / "questions.txt"
    file.write_bytes((ends + ends.join(QUESTIONS) + ends + "   " + ends).encode("utf-8-sig"))
    result = run(generate, f"checkpoint={tiny}", f"prompts={file}", "max_tokens=6")
    assert result.status == 0 and SUMMARY.fullmatch(result.err)
    lines = [json.loads(line) for line in result.out.removesuffix("\n").split("\n")]
    assert lines == answers(tiny, QUESTIONS, max_tokens=6)


def test_prompts_of_a_jsonl_file(run: Run, tiny: Path, tmp_path: Path):
    file = tmp_path / "questions.jsonl"
    lines = [json.dumps(q, ensure_ascii=False) for q in QUESTIONS[:2]]
    lines += ["", json.dumps({"prompt": QUESTIONS[2], "id": 3}, ensure_ascii=False)]
    file.write_text("\n".join(lines), "utf-8")
    result = run(generate, f"checkpoint={tiny}", f"prompts={file}", "max_tokens=6")
    assert result.status == 0
    out = [json.loads(line) for line in result.out.removesuffix("\n").split("\n")]
    assert out == answers(tiny, QUESTIONS[:3], max_tokens=6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", r"prompts=.*a\.txt: holds no prompt"),
        ("a.txt", b"caf\xe9", r"prompts=.*a\.txt: cannot be read: .*utf-8"),
        ("absent.txt", None, r"prompts=.*absent\.txt: cannot be read: .*No such file"),
        ("a.jsonl", b'"good"\n{"prompt": 3}\n{x\n', r'a\.jsonl:2: a line is .*"prompt"\n.*:3: not'),
        ("a.jsonl", b'["a"]\n', r"a\.jsonl:1: a line is a JSON text or an object"),
    ],
)
def test_prompt_files_that_cannot_be_used(
    name: str, content: bytes | None, message: str, run: Run, tmp_path: Path
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    # Found before the model, which does not exist, is looked for.
    refused(run(generate, "checkpoint=nowhere", f"prompts={tmp_path / name}"), message)
