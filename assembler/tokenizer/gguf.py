"""Building a tokenizer from the metadata of a GGUF file.

A GGUF file has no tokenizer.json: its `tokenizer.ggml.*` metadata hold the vocabulary with a type
and a score for each token, the merges, and the ids of the special tokens. Two kinds are read:

* "gpt2": byte-level BPE, with the pre-tokenizer of `gguf_pre_tokenizers`;
* "llama": SentencePiece BPE with byte fallback. It lists no merges; they follow from the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from assembler.errors import TokenizerError, did_you_mean
from assembler.tokenizer.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from assembler.tokenizer.gguf_vocabulary import SPACE, GgufVocabulary
from assembler.tokenizer.parts import TokenizerParts


def read_metadata(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that `metadata` describes.

    Raises:
        TokenizerError: a key is missing or wrong, or the tokenizer or its pre-tokenizer unknown.
    """
    vocabulary = GgufVocabulary(metadata)
    kind = vocabulary.get("model")
    if kind == "gpt2":
        scheme = _pre_tokenizer(vocabulary.get("pre", "default"))
        backend = _byte_level(vocabulary, scheme)
        add_bos = scheme.add_bos
    elif kind == "llama":
        backend = _sentencepiece(vocabulary)
        add_bos = True
    else:
        raise TokenizerError(
            f"GGUF metadata: tokenizer.ggml.model is {kind!r}; known are 'gpt2' (byte-level BPE) "
            "and 'llama' (SentencePiece)"
        )
    backend.add_special_tokens(vocabulary.special_tokens())
    backend.add_tokens(vocabulary.user_defined_tokens())
    _add_around(
        backend,
        bos=vocabulary.id_to_add("bos", add_bos),
        eos=vocabulary.id_to_add("eos", False),
    )
    return TokenizerParts(
        backend=backend,
        special_tokens=vocabulary.roles(),
        eos_token_ids=vocabulary.end_ids(),
        chat_templates=_chat_templates(metadata),
    )


def _pre_tokenizer(name: str) -> PreTokenizer:
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"GGUF metadata: the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known."
            f"{did_you_mean(name, PRE_TOKENIZERS)} Known are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]


def _byte_level(vocabulary: GgufVocabulary, scheme: PreTokenizer) -> tokenizers.Tokenizer:
    """Byte-level BPE (Radford et al., 2019): every byte is written as a letter, then merged."""
    merges = vocabulary.get("merges")
    if merges is None:
        raise TokenizerError("GGUF metadata: no tokenizer.ggml.merges, which byte-level BPE needs")
    pairs = [_split_merge(merge) for merge in merges]
    backend = _bpe(vocabulary.ids, pairs, ignore_merges=scheme.ignore_merges)
    if scheme.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), behavior="isolated") for p in scheme.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            *(pre_tokenizers.Split(Regex(p), behavior="isolated") for p in scheme.byte_patterns),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _split_merge(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise TokenizerError(f"GGUF metadata: {merge!r} in tokenizer.ggml.merges is not a pair")
    return left, right


def _sentencepiece(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    """SentencePiece BPE (Kudo and Richardson, 2018): spaces are letters, bytes the last resort."""
    unknown = vocabulary.id_of("unknown_token_id")
    backend = _bpe(
        vocabulary.ids,
        _merges_from_scores(vocabulary),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix_space = vocabulary.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix_space else spaces
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """The merges, best first: every way to make a token of two others, tokens by falling score.

    What tokenizer.json files of such models hold is derived from the SentencePiece model likewise.
    """
    ids = vocabulary.ids
    merges = []
    for token in vocabulary.by_score():
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in ids and token[cut:] in ids:
                merges.append((token[:cut], token[cut:]))
    return merges


def _bpe(
    ids: Mapping[str, int], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocab=dict(ids), merges=merges, **options))
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(f"GGUF metadata: the merges do not fit the tokens: {error}") from error


def _add_around(backend: tokenizers.Tokenizer, bos: int | None, eos: int | None) -> None:
    """Make `encode` add these tokens before and after a text."""
    before = [] if bos is None else [(backend.id_to_token(bos), bos)]
    after = [] if eos is None else [(backend.id_to_token(eos), eos)]
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*(text for text, _ in before), "$A", *(text for text, _ in after)],
            special_tokens=[*before, *after],
        )


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name -> source, from tokenizer.chat_template and tokenizer.chat_template.<name>."""
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(f"{prefix}."): value
        for key, value in metadata.items()
        if key.startswith(f"{prefix}.")
    }
    if prefix in metadata:
        templates["default"] = metadata[prefix]
    return templates
