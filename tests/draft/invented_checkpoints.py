"""Checkpoints of models that do not exist: headers and config.json are all that a draft reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, LAYERS = 48, 4, 2, 20, 40, 101, 2

CONFIG: Mapping[str, Any] = {
    "architectures": ["HeronForCausalLM"],
    "model_type": "heron",
    "d_model": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "d_ff": INNER,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
}

# Of a layer: names that no shipped architecture has all of.
LAYER: Mapping[str, tuple[int, ...]] = {
    "ln_1.weight": (HIDDEN,),
    "attn.wq.weight": (HEADS * HEAD_DIM, HIDDEN),
    "attn.wk.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn.wv.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn.wo.weight": (HIDDEN, HEADS * HEAD_DIM),
    "ln_2.weight": (HIDDEN,),
    "ffn.w1.weight": (INNER, HIDDEN),
    "ffn.w3.weight": (INNER, HIDDEN),
    "ffn.w2.weight": (HIDDEN, INNER),
}
OUTSIDE: Mapping[str, tuple[int, ...]] = {
    "wte.weight": (VOCAB, HIDDEN),
    "ln_f.weight": (HIDDEN,),
    "head.weight": (VOCAB, HIDDEN),
}


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    layer: Mapping[str, tuple[int, ...] | None] | None = None,
    outside: Mapping[str, tuple[int, ...] | None] | None = None,
    stem: str = "blocks",
) -> Path:
    """Write a Heron; `layer` and `outside` add tensors to the usual ones, or take them away."""
    shapes = {**OUTSIDE, **(outside or {})}
    for i in range(LAYERS):
        inside = {**LAYER, **(layer or {})}
        shapes |= {f"{stem}.{i}.{name}": shape for name, shape in inside.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if shape is not None}
    save_file(tensors, folder / "model.safetensors")
    fields = {k: v for k, v in {**CONFIG, **(config or {})}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
