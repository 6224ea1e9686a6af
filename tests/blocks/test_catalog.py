"""What every block of the catalogue promises: a role, described fields, layouts of its weights."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from block_harness import build_context
from torch import nn

from assembler.blocks.catalog import BLOCKS
from assembler.blocks.context import Routing
from assembler.blocks.experts import GatedExperts
from assembler.blocks.norms import LayerNorm
from assembler.blocks.parallel import Part
from assembler.blocks.router import SparseMixerRouter

ROLES = {
    *("embedding", "position", "head", "norm", "attention"),
    *("linear", "activation", "mlp", "router", "experts", "gate", "qk_norm"),
}
NEEDED = {
    "LearnedPositions": {"count": 8},
    "Linear": {"bias": True},
    "RMSNorm": {"eps": 1e-6},
    "RopeAttn": {"num_heads": 4, "qkv_bias": True, "o_bias": True, "sinks": True},
    "LatentAttn": {
        "num_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "nope_head_dim": 6,
        "rope_head_dim": 4,
        "v_head_dim": 5,
        "bias": True,
        "norm": LayerNorm,
    },
    "AlibiAttn": {"num_heads": 4, "qkv_bias": True, "o_bias": True},
    "QKNorm": {"norm": LayerNorm},
    "GatedMLP": {"intermediate_size": 64, "activation": "silu", "bias": True},
    "MLP": {"intermediate_size": 64, "activation": "gelu", "bias": True},
    "Router": {"scores": "sigmoid", "normalise": True, "bias": True, "selection_bias": True},
    "GatedExperts": {"intermediate_size": 64, "activation": "silu", "bias": True},
    "MoE": {
        "num_experts": 4,
        "top_k": 2,
        "router": SparseMixerRouter,
        "experts": partial(GatedExperts, intermediate_size=64, activation="silu"),
    },
}
EVERY_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)


def fields_of(block: type[nn.Module]) -> list[str]:
    parameters = inspect.signature(block.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


@EVERY_BLOCK
def test_every_field_is_described_in_one_line(block):
    _, _, arguments = inspect.cleandoc(block.__doc__).partition("\nArgs:\n")
    described = re.findall(r"^    (\w+): \S.+$", arguments, re.MULTILINE)
    assert described == fields_of(block)
    assert block.role in ROLES


@EVERY_BLOCK
def test_context_comes_first_and_fields_are_keywords(block):
    parameters = list(inspect.signature(block.__init__).parameters.values())[1:]
    assert parameters[0].name == "ctx"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


@EVERY_BLOCK
def test_layouts_cover_every_parameter_with_its_shape(block):
    with torch.device("meta"):
        heads = Part("q", 48, unit=12) if block.role == "gate" else None
        ctx = replace(build_context(), routing=Routing(4, 2), heads=heads)
        module = block(ctx, **NEEDED.get(block.__name__, {}))
    declared = {
        f"{name}.{leaf}".lstrip("."): layout.shape
        for name, child in module.named_modules()
        for leaf, layout in getattr(child, "shard_dims", dict)().items()
    }
    assert declared == {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
