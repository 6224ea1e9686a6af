"""One row of the parity table, and what the rows of a family share.

Sizes are odd and every knob is alive: an eps large enough to see, a window shorter than the text,
soft-caps that bend, biases everywhere, RoPE bases small enough to turn within 23 positions. A wrong
reading of any one field then moves the logits by far more than float32 noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

VOCAB_SIZE = 101
LENGTH = 23  # tokens of each text; windows and pretrained lengths lie below it
WINDOW = 7


@dataclass(frozen=True)
class Case:
    """One tiny model of one architecture."""

    name: str
    conf: str  # the conf that must be detected
    config_class: str  # in transformers
    knobs: Mapping[str, Any] = field(repr=False)
    # The class of the model, where transformers' table of causal language models lacks the config.
    model_class: str | None = None
    # Which of transformers' attention functions is the reference.
    attention: str = "eager"
    # What the hub's config.json says that transformers 5 does not write, besides the RoPE fields;
    # fields that transformers writes and the hub leaves out; and RoPE fields by another name.
    hub: Mapping[str, Any] = field(default_factory=dict)
    hub_lacks: tuple[str, ...] = ()
    hub_names: Mapping[str, str] = field(default_factory=dict)
    # Tensors that published files hold besides the weights, and the prefix they leave out.
    extra_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped_prefix: str = ""
    # The frequencies depend on the length of the text, so decoding is not a longer prefill.
    length_dependent: bool = False


def family(conf: str, config_class: str, base: Mapping[str, Any]) -> Callable[..., Case]:
    """A maker of cases that share a config class and most knobs."""

    def case(variant: str, knobs: Mapping[str, Any], **about: Any) -> Case:
        return Case(f"{conf}-{variant}", conf, config_class, {**base, **knobs}, **about)

    return case


def rope(kind: str = "default", **settings: Any) -> dict[str, Any]:
    """The knob that gives all layers one RoPE of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


def yarn(original: int, **settings: Any) -> dict[str, Any]:
    """A YaRN of factor 4 for a model pretrained on texts of `original` tokens."""
    return rope("yarn", factor=4.0, original_max_position_embeddings=original, **settings)


def longrope(original: int, frequencies: int = 6) -> dict[str, Any]:
    """LongRoPE over half a head's dimensions, pretrained on texts of `original` tokens."""
    short = [1.0 + 0.3 * n for n in range(frequencies)]
    long = [1.5 + 1.1 * n for n in range(frequencies)]
    settings = rope("longrope", short_factor=short, long_factor=long)
    return {"original_max_position_embeddings": original, **settings}


def rope_of_each_kind(**full: Any) -> dict[str, Any]:
    """One RoPE for each kind of layer; `full` scales that of the full layers."""
    sliding = {"rope_type": "default", "rope_theta": 50.0}
    full = {"rope_type": "default", "rope_theta": 300.0, **full}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
NARROW = {**COMMON, "num_key_value_heads": 2, "rms_norm_eps": 2e-3}
WIDE = {**NARROW, "head_dim": 20}  # hidden_size / num_attention_heads is 12
WINDOWS = {
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 2,
}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
