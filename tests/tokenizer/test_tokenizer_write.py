"""Tokenizers of GGUF files, written as a folder that transformers and we read alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_builders import BACKENDS, TEXTS, gguf_metadata
from transformers import AutoTokenizer

from assembler.tokenizer import Tokenizer
from assembler.tokenizer.gguf import read_metadata
from assembler.tokenizer.write import write_folder

KINDS = {
    "smollm": ("gpt2", {"pre": "smollm", "add_bos_token": True}),
    "llama3": ("gpt2", {"pre": "llama-bpe"}),
    "llama2": ("llama", {}),
    "gemma": ("llama", {"add_space_prefix": False}),
}
TEMPLATES = {
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}<s>é",
    "tokenizer.chat_template.tool_use": "{{ tools | length }}",
}
MESSAGES = [{"role": "user", "content": "ä b"}]


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("name", KINDS)
def test_transformers_reads_the_same_ids(name: str, model_type: str, tmp_path: Path) -> None:
    kind, extra = KINDS[name]
    metadata = gguf_metadata(BACKENDS[name](), kind, **extra) | TEMPLATES
    write_folder(read_metadata(metadata), tmp_path, model_max_length=77)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = Tokenizer.from_gguf(metadata)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = expected.encode(text, special)
            assert theirs(text, add_special_tokens=special)["input_ids"] == ids, text
            assert ours.encode(text, special) == ids
            assert ours.decode(ids) == expected.decode(ids)
            assert theirs.decode(ids, skip_special_tokens=True) == expected.decode(ids)
    assert theirs.model_max_length == 77
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    assert ours.special_tokens == expected.special_tokens
    assert ours.special_ids == expected.special_ids


def test_chat_templates_have_files_of_their_own(tmp_path: Path) -> None:
    kind, extra = KINDS["llama3"]
    metadata = gguf_metadata(BACKENDS["llama3"](), kind, **extra) | TEMPLATES
    write_folder(read_metadata(metadata), tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    text = ours.apply_chat_template(MESSAGES)
    assert text == "ä b\n<s>é" == theirs.apply_chat_template(MESSAGES, tokenize=False)
    assert ours.apply_chat_template(MESSAGES, tools=[{"a": 1}]) == "1"
    assert "model_max_length" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
