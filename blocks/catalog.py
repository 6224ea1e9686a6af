"""The blocks that a model YAML may name, by class name.

A new block is a class in this folder and a line here: its first constructor argument is the
`BuildContext`, its keyword arguments are the YAML fields, `role` says what it can stand for.
"""

from __future__ import annotations

from torch import nn

from assembler.blocks.activations import XIELU
from assembler.blocks.alibi import AlibiAttn
from assembler.blocks.attention import RopeAttn
from assembler.blocks.attention_gate import OutputGate
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.experts import GatedExperts
from assembler.blocks.latent_attention import LatentAttn
from assembler.blocks.linear import Linear
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.moe import MoE
from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.blocks.positions import LearnedPositions, SinusoidalPositions
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.router import Router, SparseMixerRouter

BLOCKS: tuple[type[nn.Module], ...] = (
    Embedding,
    LearnedPositions,
    SinusoidalPositions,
    LMHead,
    RMSNorm,
    LayerNorm,
    RopeAttn,
    AlibiAttn,
    LatentAttn,
    QKNorm,
    OutputGate,
    GatedMLP,
    MLP,
    XIELU,
    Linear,
    MoE,
    Router,
    SparseMixerRouter,
    GatedExperts,
)
