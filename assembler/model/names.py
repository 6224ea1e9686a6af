"""The names a model YAML gives to its blocks and streams, and which of them are taken."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from functools import cache

from torch import fx, nn

from assembler.blocks.functions import FUNCTIONS
from assembler.model import expressions

CONTEXT = "ctx"  # the last argument of every graph: the ForwardContext
LAYERS = "layers"
TOKENS, LOGITS = "tokens", "logits"  # what a model's equations begin with and end with
NUMBERS = ("hidden_size", "vocab_size", "num_layers")  # of the model, in every equation
LAYER_INDEX = "i"
PER_LAYER = "per_layer"  # the key of a field with a value for each layer


def block_name_problem(name: str, streams: Iterable[str]) -> str | None:
    """Why a block cannot have this name, or None if it can."""
    if name in streams:
        return f"'{name}' is a stream, so a block cannot be called that"
    if name in _module_attributes() or re.match(r"_|scale_[0-9]", name):
        return f"'{name}' means something else on a torch module: give the block another name"
    return stream_name_problem(name)


def stream_name_problem(name: str) -> str | None:
    """Why a stream cannot have this name, or None if it can."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return f"'{name}' is no name: use letters, digits and _, with no digit first"
    if keyword.iskeyword(name):
        return f"'{name}' is a word of the equations' syntax: use another name"
    if name in (LAYER_INDEX, *NUMBERS):
        return f"'{name}' is a number in every equation: use another name"
    if name == LAYERS or name in FUNCTIONS or name in expressions.FUNCTIONS:
        return f"'{name}' is a function in every equation: use another name"
    if name in (TOKENS, CONTEXT):
        return f"'{name}' is an input of the model: use another name"
    return None


@cache
def _module_attributes() -> frozenset[str]:
    """What a compiled module has attributes for already."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | {"spec", "tp"}
