"""Writes large random checkpoints in shards, as the hub has them, for `loader.py`."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Of a model; those of Llama-3.2-1B unless told otherwise."""

    layers: int
    hidden: int = 2048
    inter: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128256

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says of them."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            **COMMON,
        }


TINY = Sizes(layers=1, hidden=64, inter=128, heads=4, kv_heads=4, vocab=256)
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
ARCHITECTURES = {  # "llama" is merged by its weight map; "phi3" is fused on disk already
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"},
}


def write_checkpoint(folder: Path, kind: str, sizes: Sizes) -> int:
    """Write (or reuse) the checkpoint of that kind and size; returns its bytes."""
    table = (sizes.vocab, sizes.hidden)
    shapes = {"model.embed_tokens.weight": table}
    for i in range(sizes.layers):
        shapes |= {f"model.layers.{i}.{k}.weight": v for k, v in _layer(kind, sizes).items()}
    shapes |= {"model.norm.weight": (sizes.hidden,), "lm_head.weight": table}
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    if (folder / "config.json").is_file():
        return total
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch.randn(1 << 24).bfloat16()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * math.prod(shape)
    names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        save_file({k: _tiled(noise, v) for k, v in shard.items()}, folder / file, {"format": "pt"})
    index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    config = {**sizes.config, **ARCHITECTURES[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    os.sync()
    return total


def sizes_for(gigabytes: float) -> Sizes:
    """Enough layers for a checkpoint of at least this size."""
    one = Sizes(layers=1)
    layer = sum(math.prod(shape) for shape in _layer("llama", one).values())
    rest = gigabytes * 1e9 / 2 - 2 * one.vocab * one.hidden
    return Sizes(layers=max(1, math.ceil(rest / layer)))


def _layer(kind: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    hidden, inter = sizes.hidden, sizes.inter
    head = hidden // sizes.heads
    q, kv = sizes.heads * head, sizes.kv_heads * head
    if kind == "phi3":
        shapes = {
            "self_attn.qkv_proj": (q + 2 * kv, hidden),
            "mlp.gate_up_proj": (2 * inter, hidden),
        }
    else:
        shapes = {"self_attn.q_proj": (q, hidden)}
        shapes |= {f"self_attn.{x}_proj": (kv, hidden) for x in "kv"}
        shapes |= {f"mlp.{x}_proj": (inter, hidden) for x in ("gate", "up")}
    return shapes | {
        "self_attn.o_proj": (hidden, q),
        "mlp.down_proj": (hidden, inter),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }


def _tiled(noise: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    numel = math.prod(shape)
    return noise.repeat(-(-numel // len(noise)))[:numel].view(shape)
