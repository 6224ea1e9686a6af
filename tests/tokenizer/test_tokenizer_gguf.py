"""`Tokenizer.from_gguf`: metadata made from a tokenizer.json gives the same ids as that file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_builders import (
    BACKENDS,
    TEXTS,
    byte_level,
    gguf_metadata,
    llama3_split,
    sentencepiece,
)
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from assembler.errors import TokenizerError
from assembler.tokenizer import Tokenizer
from assembler.tokenizer.gguf_pre_tokenizers import PRE_TOKENIZERS

KINDS = {
    "smollm": ("gpt2", {"pre": "smollm", "add_bos_token": True}),
    "llama3": ("gpt2", {"pre": "llama-bpe"}),
    "llama2": ("llama", {}),
    "gemma": ("llama", {"add_space_prefix": False}),
}


@pytest.fixture
def metadata() -> dict[str, Any]:
    """Valid metadata, for the tests that spoil it."""
    return gguf_metadata(byte_level(llama3_split()), "gpt2", pre="llama-bpe")


@pytest.mark.parametrize("name", KINDS)
def test_same_ids_and_text_as_the_folder(folders: dict[str, Path], name: str) -> None:
    kind, extra = KINDS[name]
    from_folder = Tokenizer.from_folder(folders[name])
    from_gguf = Tokenizer.from_gguf(gguf_metadata(BACKENDS[name](), kind, **extra))
    for text in TEXTS:
        for special in (True, False):
            ids = from_folder.encode(text, special)
            assert from_gguf.encode(text, special) == ids, text
            assert from_gguf.decode(ids, special) == from_folder.decode(ids, special)
    assert from_gguf.vocab_size == from_folder.vocab_size
    assert from_gguf.special_ids == from_folder.special_ids
    assert from_gguf.special_tokens == from_folder.special_tokens
    assert from_gguf.bos_token_id == from_folder.bos_token_id


def test_runs_of_spaces_are_made_by_merges_as_in_the_original() -> None:
    """Gemma's converter writes them as user-defined tokens of real spaces with a fixed score."""
    runs = ["▁▁", "▁▁▁", "▁▁▁▁"]
    words = ["▁▁", "▁▁▁", "▁▁▁▁", "a", "b", "▁", "▁a", "▁b", "<unk>"]
    vocab = {token: i for i, token in enumerate(words)}
    merges = [("▁", "▁"), ("▁▁", "▁"), ("▁", "▁▁"), ("▁▁▁", "▁"), ("▁▁", "▁▁"), ("▁", "▁▁▁")]
    merges += [("▁", "a"), ("▁", "b")]
    original = Backend(models.BPE(vocab, merges, unk_token="<unk>"))
    original.normalizer = normalizers.Replace(" ", "▁")
    values = {
        "model": "llama",
        "tokens": [" " * len(w) if w in runs else w for w in words],
        "token_type": [4, 4, 4, 1, 1, 1, 1, 1, 2],
        "scores": [-1000.0, -1000.0, -1000.0, -3.0, -4.0, -5.0, -1.0, -2.0, 0.0],
        "unknown_token_id": 8,
        "add_space_prefix": False,
        "add_bos_token": False,
    }
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{k}": v for k, v in values.items()})
    for text in ("a b", "a  b", "   a", " " * 9 + "b", "a    b     a"):
        ids = tokenizer.encode(text)
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == text


def pieces(splitter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(set(GGUF_PRE_TOKENIZER_SPLITS) & set(PRE_TOKENIZERS)))
def test_pre_tokenizers_split_as_those_of_transformers(name: str) -> None:
    ours = Tokenizer.from_gguf(gguf_metadata(byte_level(llama3_split()), "gpt2", pre=name))
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in TEXTS:
        assert pieces(ours.backend.pre_tokenizer, text) == pieces(theirs, text)


def byte_letters(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def isolated(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# As in the tokenizer.json of the models.
PUBLISHED = {
    "gpt-2": [byte_letters(True)],
    "default": [byte_letters(True)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_letters(True)],
    "falcon": [
        pre_tokenizers.Punctuation(behavior="contiguous"),
        byte_letters(True),
        pre_tokenizers.Digits(individual_digits=False),
        isolated("[0-9][0-9][0-9]"),
    ],
    "deepseek-coder": [
        isolated("[\r\n]"),
        isolated(r"\s?\p{L}+"),
        isolated(r"\s?\p{P}+"),
        isolated("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
        byte_letters(False),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pre_tokenizers_split_as_the_published_ones(name: str) -> None:
    ours = Tokenizer.from_gguf(gguf_metadata(byte_level(llama3_split()), "gpt2", pre=name))
    theirs = pre_tokenizers.Sequence(PUBLISHED[name])
    for text in TEXTS:
        assert pieces(ours.backend.pre_tokenizer, text) == pieces(theirs, text)


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_compiles_and_loses_nothing(name: str) -> None:
    metadata = gguf_metadata(byte_level(llama3_split()), "gpt2", pre=name, add_bos_token=False)
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in TEXTS:
        normal = tokenizer.backend.normalizer
        expected = text if normal is None else normal.normalize_str(text)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == expected


def test_words_that_are_tokens_need_no_merges_where_the_scheme_says_so() -> None:
    values = {"model": "gpt2", "tokens": ["a", "b", "c", "bc", "abc"], "merges": ["b c"]}
    for name, expected in (("tekken", [4]), ("gpt-2", [0, 3])):
        metadata = {f"tokenizer.ggml.{k}": v for k, v in {**values, "pre": name}.items()}
        metadata["tokenizer.ggml.add_bos_token"] = False
        assert Tokenizer.from_gguf(metadata).encode("abc") == expected


def test_bos_and_eos_follow_the_flags(metadata: dict[str, Any]) -> None:
    assert Tokenizer.from_gguf(metadata).encode("the")[0] == 1  # the scheme's default
    metadata |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    ids = Tokenizer.from_gguf(metadata).encode("the")
    assert ids[0] != 1 and ids[-1] == 2


def test_end_of_sequence_ids(metadata: dict[str, Any]) -> None:
    assert Tokenizer.from_gguf(metadata).eos_token_ids == {2, 3}  # </s>, and <|end|> by its name
    metadata["tokenizer.ggml.eot_token_id"] = 0
    assert Tokenizer.from_gguf(metadata).eos_token_ids == {0, 2}


def test_files_without_token_types_still_have_their_special_tokens(
    metadata: dict[str, Any],
) -> None:
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_token_ids == tokenizer.special_ids - {1} == {2}
    assert tokenizer.decode(tokenizer.encode("the</s>")) == "the"


def test_control_tokens_outside_the_byte_alphabet_stay_whole() -> None:
    backend = byte_level(llama3_split())
    backend.add_special_tokens([AddedToken("<｜User▁turn｜>", normalized=False)])
    tokenizer = Tokenizer.from_gguf(gguf_metadata(backend, "gpt2", pre="deepseek-v3"))
    ids = tokenizer.encode("<｜User▁turn｜>hello", add_special_tokens=False)
    assert ids[0] == tokenizer.vocab_size - 1
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<｜User▁turn｜>hello"


def test_chat_templates(metadata: dict[str, Any]) -> None:
    assert not Tokenizer.from_gguf(metadata).has_chat_template
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ messages[0].content }}"
    metadata["tokenizer.chat_templates"] = ["short"]
    metadata["tokenizer.chat_template.short"] = "short"
    tokenizer = Tokenizer.from_gguf(metadata)
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(messages) == "<s>hello"
    assert tokenizer.apply_chat_template(messages, chat_template="short") == "short"
    # The beginning of sequence is the template's, not added again.
    assert tokenizer.encode_chat(messages).count(1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "tokenizer.ggml.model is None; known are 'gpt2'"),
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"pre": "smolm"}, "'smolm' .* Did you mean 'smollm'"),
        ({"pre": "?"}, "Known are a.x-4.0, bloom"),
        ({"tokens": None}, "the file has no tokenizer"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "'ab' in tokenizer.ggml.merges is not a pair"),
        ({"merges": ["zz qq"]}, "the merges do not fit the tokens"),
        ({"token_type": [1, 2]}, "token_type has 2 values for 421 tokens"),
        ({"bos_token_id": 421}, "bos_token_id is 421, but the vocabulary has 421 tokens"),
        ({"bos_token_id": None, "add_bos_token": True}, "there is no tokenizer.ggml.bos_token_id"),
        ({"tokens": ["a", "b", "a"]}, "token 'a' is in the vocabulary twice"),
    ],
)
def test_wrong_metadata(metadata: dict[str, Any], change: dict[str, Any], message: str) -> None:
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata)


def test_sentencepiece_without_a_prefix_space_keeps_the_first_space() -> None:
    metadata = gguf_metadata(sentencepiece(), "llama", add_space_prefix=False)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode(" the dog")) == " the dog"
