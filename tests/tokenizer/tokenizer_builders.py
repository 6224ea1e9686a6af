"""Small real tokenizers, built with the `tokenizers` library and saved as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind; it's a lazy dog!",
    "def forward(self, x):\n    return norm(x) + self.attn(x)  # residual\n\n\nclass A:\n\tpass",
    "In 1984 and 2024 there were 12345 foxes, 3.14159 dogs and 1,000,000 other animals.",
    "naïve café résumé Ünïcödé 中文测试 日本語テスト 한국어 русский текст ελληνικά",
    "hello world, hello there, hello again and again and again",
]

TEXTS = [
    "",
    "Hello world",
    " leading and trailing ",
    "a  b   c    d\t\te\n\n\nf\r\ng",
    "x" + " " * 20 + "y",
    "12345 1234567 3.14159 2024-11-21 ½ ² ٣٤٥ 2\n 3",
    "def f(x):\n    return x**2  # square\n",
    "Don't can't WE'LL they're o'clock",
    "😀👨‍👩‍👧‍👦🇫🇷👍🏽 smile",
    "中文测试,日本語テスト、한국어 mixed",
    "é e\u0301 ñ n\u0303 Å A\u030a combining",
    "\u200b\ufeff\u00a0 odd spaces\u3000",
    "مرحبا בעולם ไทย हिन्दी",
    "<s>special<|end|> in </s>text<think>ok</think>",
    "naïve café, the lazy dog's résumé!",
]

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def bos_processor(backend: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer trained on CORPUS, with special and added tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.post_processor = bos_processor(backend)
    return backend


def sentencepiece_vocab() -> dict[str, int]:
    """Tokens in the order of a SentencePiece model: special, bytes, then by falling score."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=260, show_progress=False)
    backend.train_from_iterator([f"▁{line}" for line in CORPUS], trainer)
    learned = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merged = [token for token, _ in learned if len(token) > 1]
    letters = [token for token, _ in learned if len(token) == 1 and token != "中"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters]
    return {token: token_id for token_id, token in enumerate(tokens)}


def sentencepiece(prefix_space: bool = True) -> Tokenizer:
    """A SentencePiece-like BPE tokenizer with byte fallback (the layout of Llama 2 and Gemma)."""
    vocab = sentencepiece_vocab()
    merges = generate_merges(vocab, {token: -float(i) for token, i in vocab.items()})
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", "▁")]
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.insert(0, normalizers.Prepend("▁"))
        decode.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(decode)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    backend.post_processor = bos_processor(backend)
    return backend


def unigram() -> Tokenizer:
    """A Unigram tokenizer with Metaspace, as in XGLM."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def smollm_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def llama3_split() -> pre_tokenizers.PreTokenizer:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save(backend: Tokenizer, folder: Path, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json the way `save_pretrained` does."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **{**CONFIG, **config}).save_pretrained(
        folder
    )
    return folder


def gguf_metadata(backend: Tokenizer, kind: str, **extra: Any) -> dict[str, Any]:
    """The metadata a GGUF converter writes for `backend`."""
    ids = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    added = backend.get_added_tokens_decoder()
    special = {i: 3 if token.special else 4 for i, token in added.items()}
    types = [
        6 if t.startswith("<0x") else special.get(i, 2 if t == "<unk>" else 1)
        for i, t in enumerate(tokens)
    ]
    values = {
        "model": kind,
        "tokens": tokens,
        "token_type": types,
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "unknown_token_id": ids["<unk>"],
        **extra,
    }
    if kind == "gpt2":
        merges = json.loads(backend.to_str())["model"]["merges"]
        values["merges"] = [" ".join(pair) for pair in merges]
    else:
        values["scores"] = [0.0 if types[i] != 1 else -float(i) for i in range(len(tokens))]
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


BACKENDS = {
    "smollm": lambda: byte_level(smollm_split()),
    "llama3": lambda: byte_level(llama3_split()),
    "llama2": sentencepiece,
    "gemma": lambda: sentencepiece(prefix_space=False),
    "unigram": unigram,
}
