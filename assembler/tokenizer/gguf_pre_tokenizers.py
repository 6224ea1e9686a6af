"""How text is cut into words before byte-level BPE, by the name GGUF files give the scheme.

A GGUF file stores the vocabulary and the merges, but of the pre-tokenizer only its name
(`tokenizer.ggml.pre`). The patterns are those of the tokenizer.json files of the models that the
names stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PreTokenizer:
    """One scheme. Patterns are Oniguruma regular expressions, applied one after the other: each
    cuts the pieces that the ones before it left into its matches and what lies between them.
    """

    patterns: tuple[str, ...]
    byte_patterns: tuple[str, ...] = ()  # applied after bytes are written as letters
    nfc: bool = False  # Unicode normalisation comes first
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges say
    add_bos: bool = False  # where the metadata does not say


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PUNCTUATION_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAMEL_1 = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
_CAMEL_2 = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
_TEKKEN = rf"{_CAMEL_1}|{_CAMEL_2}|\p{{N}}|{_PUNCTUATION_AND_SLASHES}|{_SPACES}"
_GPT4O = (
    rf"{_CAMEL_1}{_CONTRACTION}?|{_CAMEL_2}{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"|{_PUNCTUATION_AND_SLASHES}|{_SPACES}"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_FALCON = PreTokenizer(
    (r"[\p{P}$+<=>^`|~]+", _GPT2),
    # In the byte alphabet the superscripts and fractions of Latin-1 stand for bytes; the model was
    # trained with them cut off like digits.
    byte_patterns=(r"\p{N}+", r"[0-9][0-9][0-9]"),
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    # "default" is what files say that were written before there were names; most hold GPT-2's.
    ("default gpt-2 phi-2 jais exaone4 mellum gigachat a.x-4.0", PreTokenizer((_GPT2,))),
    ("trillion granite-docling", PreTokenizer((_GPT2,))),
    ("mpt olmo", PreTokenizer((_GPT2,), nfc=True)),  # the tokenizer of GPT-NeoX
    ("smollm starcoder refact codeshell exaone minerva-7b", PreTokenizer((r"\p{N}", _GPT2))),
    ("command-r", PreTokenizer((r"\p{N}", _GPT2), nfc=True)),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe glm4", PreTokenizer((_LLAMA3,))),
    ("qwen2", PreTokenizer((_QWEN2,), nfc=True)),
    ("qwen35", PreTokenizer((_QWEN35,), nfc=True)),
    (
        "deepseek-r1-qwen stablelm2 megrez kormo f2llmv2 hunyuan solar-open grok-2",
        PreTokenizer((_QWEN2,)),
    ),
    ("tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 minimax-m2", PreTokenizer((_GPT4O,))),
    ("deepseek-v3 hunyuan-dense joyai-llm", PreTokenizer(_DEEPSEEK_V3)),
    ("deepseek-coder", PreTokenizer(_DEEPSEEK_CODER)),
    ("falcon", _FALCON),
    ("bloom gpt3-finnish poro-chat", PreTokenizer((_BLOOM,))),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: scheme for names, scheme in _FAMILIES for name in names.split()}
)
