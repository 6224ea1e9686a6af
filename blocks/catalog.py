"""The blocks that a model YAML may name, by class name.

A new block is a class in this folder and a line here: its first constructor argument is the
`BuildContext`, its keyword arguments are the YAML fields, `role` says what it can stand for.
"""

from __future__ import annotations

from torch import nn

from assembler.blocks.attention import RopeAttn
from assembler.blocks.embedding import Embedding, LearnedPositions, LMHead
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.norms import LayerNorm, RMSNorm

BLOCKS: tuple[type[nn.Module], ...] = (
    Embedding,
    LearnedPositions,
    LMHead,
    RMSNorm,
    LayerNorm,
    RopeAttn,
    GatedMLP,
    MLP,
)
