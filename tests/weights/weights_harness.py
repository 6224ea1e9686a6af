"""A tiny decoder's parameters (no forward) and checkpoints for it, to plan and load against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.blocks.norms import RMSNorm
from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.weights.execute import execute_plan, materialize
from assembler.weights.index import CheckpointIndex, read_checkpoint_index
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.weight_map import WeightMap, load_weight_map

MAP = """\
prefixes: ["", "language_model."]
weights:
  embed: model.embed_tokens
  layers.{i}:
    from: model.layers.{i}
    attn_norm: input_layernorm
    attn.qkv: [self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]
    attn.o: self_attn.o_proj
    mlp.gate_up: [mlp.gate_proj, mlp.up_proj]
    mlp.down: mlp.down_proj
  norm: model.norm
  lm_head: lm_head
tp: {column: [attn.qkv, mlp.gate_up], row: [attn.o, mlp.down], vocab: [embed, lm_head]}
ignore:
  "*.rotary_emb.inv_freq": {reason: recomputed from the config, optional: true}
"""


@dataclass(frozen=True)
class Sizes:
    hidden: int = 12
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    inter: int = 8
    vocab: int = 20
    layers: int = 3


SIZES = Sizes()
CONFIG = {
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 8,
    "vocab_size": 20,
}


class Leaf(nn.Module):
    """A module with one parameter of any layout."""

    def __init__(self, layout: ShardDim, leaf: str = "weight", tp: TensorParallel | None = None):
        super().__init__()
        tp = tp or TensorParallel()
        shape = list(layout.shape)
        if layout.dim is not None:
            shape[layout.dim] = sum(len(p.rank_rows(tp.rank, tp.size)) for p in layout.parts)
        self.layout, self.leaf = layout, leaf
        self.register_parameter(leaf, nn.Parameter(torch.empty(shape)))

    def shard_dims(self) -> dict[str, ShardDim]:
        return {self.leaf: self.layout}


def nest(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at the dotted `path`, making the modules on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(name, module)


def decoder(
    sizes: Sizes = SIZES,
    *,
    tied: bool = False,
    qkv_bias: bool = False,
    o_bias: bool = False,
    tp: TensorParallel | None = None,
) -> nn.Module:
    """The parameters of a Llama-like model, on meta."""
    tp = tp or TensorParallel()
    ctx = BuildContext(sizes.hidden, sizes.vocab, None, tp)
    root = nn.Module()
    root.tp = tp
    q = Part("q", sizes.heads * sizes.head_dim, sizes.head_dim)
    kv = (sizes.kv_heads * sizes.head_dim, sizes.head_dim, True)
    mlp = (Part("gate", sizes.inter), Part("up", sizes.inter))
    inner = Part("in", sizes.inter)
    with torch.device("meta"):
        nest(root, "embed", Embedding(ctx))
        for i in range(sizes.layers):
            at = f"layers.{i}"
            nest(root, f"{at}.attn_norm", RMSNorm(ctx, eps=1e-6))
            parts = (q, Part("k", *kv), Part("v", *kv))
            nest(root, f"{at}.attn.qkv", ColumnLinear(sizes.hidden, parts, qkv_bias, tp))
            nest(root, f"{at}.attn.o", RowLinear(q, sizes.hidden, o_bias, tp))
            nest(root, f"{at}.mlp.gate_up", ColumnLinear(sizes.hidden, mlp, False, tp))
            nest(root, f"{at}.mlp.down", RowLinear(inner, sizes.hidden, False, tp))
        nest(root, "norm", RMSNorm(ctx, eps=1e-6))
        nest(root, "lm_head", LMHead(ctx, tied=tied))
    if tied:
        root.lm_head.tie(root.embed)
    return root


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def tensors(sizes: Sizes = SIZES, *, qkv_bias: bool = False) -> dict[str, torch.Tensor]:
    """The decoder's checkpoint under the hub's names, random."""
    torch.manual_seed(0)
    h, d = sizes.hidden, sizes.head_dim
    rows = {"q": sizes.heads * d, "k": sizes.kv_heads * d, "v": sizes.kv_heads * d}
    out = {"model.embed_tokens.weight": random(sizes.vocab, h)}
    for i in range(sizes.layers):
        at = f"model.layers.{i}"
        out[f"{at}.input_layernorm.weight"] = random(h)
        for name, size in rows.items():
            out[f"{at}.self_attn.{name}_proj.weight"] = random(size, h)
            if qkv_bias:
                out[f"{at}.self_attn.{name}_proj.bias"] = random(size)
        out[f"{at}.self_attn.o_proj.weight"] = random(h, rows["q"])
        out[f"{at}.mlp.gate_proj.weight"] = random(sizes.inter, h)
        out[f"{at}.mlp.up_proj.weight"] = random(sizes.inter, h)
        out[f"{at}.mlp.down_proj.weight"] = random(h, sizes.inter)
    out["model.norm.weight"] = random(h)
    out["lm_head.weight"] = random(sizes.vocab, h)
    return out


def save(folder: Path, weights: dict[str, torch.Tensor]) -> CheckpointIndex:
    """Write a one-file checkpoint and read its headers."""
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return read_checkpoint_index(folder)


def kinds(plan: LoadPlan) -> list[tuple[str, str]]:
    """(kind, subject) of every finding that is an error."""
    return [(finding.kind, finding.subject) for finding in plan.errors]


def write_map(folder: Path, text: str = MAP, name: str = "tiny") -> WeightMap:
    """Write `weight_maps/<name>.yaml` under `folder` and load it by name."""
    path = folder / "weight_maps" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return load_weight_map(name, [folder])


def lone(layout: ShardDim, path: str = "x", tp: TensorParallel | None = None) -> nn.Module:
    """A model of one module with the parameter `weight`, on meta."""
    return several({path: layout}, tp)


def several(layouts: dict[str, ShardDim], tp: TensorParallel | None = None) -> nn.Module:
    """A model of modules with one parameter each, by path ("x" or "x.bias" for another leaf)."""
    root = nn.Module()
    root.tp = tp or TensorParallel()
    with torch.device("meta"):
        for path, layout in layouts.items():
            leaf = "bias" if path.endswith(".bias") else "weight"
            nest(root, path.removesuffix(".bias"), Leaf(layout, leaf, root.tp))
    return root


def load_parameters(
    model: nn.Module,
    weight_map: WeightMap,
    index: CheckpointIndex,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Plan, materialize and execute; the model's parameters."""
    plan = plan_load(weight_map, model, index)
    plan.raise_for_findings()
    materialize(model, "cpu", dtype, plan.dtypes)
    execute_plan(plan, model, index)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
