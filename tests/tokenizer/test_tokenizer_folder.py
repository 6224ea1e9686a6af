"""`Tokenizer.from_folder` against transformers' AutoTokenizer on the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizer_builders import (
    BACKENDS,
    TEXTS,
    byte_level,
    save,
    sentencepiece,
    smollm_split,
    unigram,
)
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    Qwen2Tokenizer,
)

from assembler.errors import RequestError, TokenizerError
from assembler.tokenizer import Tokenizer


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def assert_equal_to_transformers(folder: Path) -> Tokenizer:
    """Ids and text of both on TEXTS; returns ours."""
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id
    assert theirs.eos_token_id in ours.eos_token_ids
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            assert ours.decode(ids, special) == theirs.decode(ids, skip_special_tokens=special)
    return ours


@pytest.mark.parametrize("name", BACKENDS)
def test_every_layout_equals_transformers(folders: dict[str, Path], name: str) -> None:
    tokenizer = assert_equal_to_transformers(folders[name])
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    assert not tokenizer.has_chat_template


@pytest.mark.parametrize("kind", [LlamaTokenizer, GemmaTokenizer, Qwen2Tokenizer, GPT2Tokenizer])
def test_files_written_by_the_classes_of_transformers(kind: type, tmp_path: Path) -> None:
    is_byte_level = kind in (Qwen2Tokenizer, GPT2Tokenizer)
    backend = byte_level(smollm_split()) if is_byte_level else sentencepiece()
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = kind(
        vocab=model["vocab"], merges=merges, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>",
    )  # fmt: skip
    made.save_pretrained(tmp_path)
    assert_equal_to_transformers(tmp_path)


def test_tokens_that_only_tokenizer_config_declares(tmp_path: Path) -> None:
    folder = save(byte_level(smollm_split()), tmp_path)
    token = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    edit_json(
        folder / "tokenizer_config.json",
        pad_token="<pad>",
        image_token="<image>",
        extra_special_tokens=["naïve"],
        added_tokens_decoder={
            "420": {"content": "<think>", **token, "special": True},
            "9": {"content": "lazy", **token, "special": False},
        },
    )
    tokenizer = assert_equal_to_transformers(folder)
    assert tokenizer.special_tokens["image_token"] == "<image>"
    assert "<think>" not in tokenizer.decode(tokenizer.encode("<think>ok"))


def test_older_files_keep_special_tokens_in_special_tokens_map(tmp_path: Path) -> None:
    folder = save(sentencepiece(), tmp_path)
    edit_json(folder / "tokenizer_config.json", bos_token=None, eos_token=None, unk_token=None)
    eos = {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False}
    edit_json(
        folder / "special_tokens_map.json",
        bos_token="<s>",
        eos_token={**eos, "single_word": False},
        additional_special_tokens=["<|user|>", "<|tool|>"],
    )
    tokenizer = assert_equal_to_transformers(folder)
    assert tokenizer.eos_token_ids == {3}
    assert len(tokenizer.encode("<|user|><|tool|>", add_special_tokens=False)) == 2


def test_older_files_keep_added_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder = save(byte_level(smollm_split()), tmp_path)
    edit_json(folder / "added_tokens.json", **{"dog": 422, "quick": 421, "</s>": 2})
    tokenizer = assert_equal_to_transformers(folder)
    assert tokenizer.encode("quickdog", add_special_tokens=False) == [421, 422]


def test_split_special_tokens(tmp_path: Path) -> None:
    folder = save(byte_level(smollm_split()), tmp_path)
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    tokenizer = assert_equal_to_transformers(folder)
    assert len(tokenizer.encode("<s>", add_special_tokens=False)) > 1


@pytest.mark.parametrize("build", [unigram, sentencepiece])
def test_space_cleanup_is_for_tokenizers_other_than_bpe(build: Any, tmp_path: Path) -> None:
    folder = save(build(), tmp_path)
    edit_json(folder / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    tokenizer = assert_equal_to_transformers(folder)
    text = "the lazy dog , and the fox !"
    cleaned = "the lazy dog, and the fox!"
    expected = cleaned if build is unigram else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_truncation_and_padding_left_in_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = byte_level(smollm_split())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = Tokenizer.from_folder(tmp_path).encode(TEXTS[1] * 5)
    assert 4 < len(ids) < 64


def test_end_of_sequence_ids_come_from_the_tokenizer_and_the_generation_config(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llama3"], tmp_path / "model")
    assert Tokenizer.from_folder(folder).eos_token_ids == {2}
    edit_json(folder / "config.json", text_config={"eos_token_id": 7})
    assert Tokenizer.from_folder(folder).eos_token_ids == {2, 7}
    edit_json(folder / "config.json", eos_token_id=8)
    assert Tokenizer.from_folder(folder).eos_token_ids == {2, 8}
    edit_json(folder / "generation_config.json", eos_token_id=[3, 2])
    assert Tokenizer.from_folder(folder).eos_token_ids == {2, 3}


def test_without_tokenizer_json_the_error_says_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "absent")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json \(found nothing\)"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TokenizerError, match=r"\(found model\.safetensors\)"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"only tokenizer\.model \(a SentencePiece model\)"):
        Tokenizer.from_folder(tmp_path)


def test_damaged_files_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama3"], tmp_path / "model")
    (folder / "generation_config.json").write_text("[1, 2]")
    with pytest.raises(TokenizerError, match=r"generation_config\.json: expected a JSON object"):
        Tokenizer.from_folder(folder)
    (folder / "generation_config.json").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=[{"template": "x"}])
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: chat_template is neither"):
        Tokenizer.from_folder(folder)
    edit_json(folder / "tokenizer_config.json", pad_token={"text": "<pad>"})
    with pytest.raises(TokenizerError, match="a token is not written as expected: KeyError"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not a JSON file"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not UTF-8 text"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.from_folder(folder)


def test_what_is_not_text_or_not_an_id_is_refused(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(folders["llama2"])
    with pytest.raises(RequestError, match=r"U\+D83D\) at character 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(RequestError, match="is a list, not a str"):
        tokenizer.encode(["ab"])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="-1 is not a token id"):
        tokenizer.decode([5, -1])
    assert tokenizer.decode([tokenizer.vocab_size + 100]) == ""


def test_importing_stays_light() -> None:
    code = "import sys, assembler.tokenizer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "jinja2"} & set(done.stdout.split())
