"""What each example of docs/weight-maps.md has to do, written out in plain torch.

An example is a function named after the comment at the head of its YAML. It gives the parameters
of a small model, the tensors of a checkpoint, and what the parameters must hold after loading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from assembler.blocks.parallel import Part, ShardDim, ShardKind

HEADS, KV, DIM, HIDDEN, WIDE = 4, 2, 6, 5, 8  # odd sizes, so that no wrong reshape fits
EXPERTS = 4
QKV = (Part("q", HEADS * DIM, DIM), Part("k", KV * DIM, DIM), Part("v", KV * DIM, DIM))
MHA = tuple(Part(name, HEADS * DIM, DIM) for name in "qkv")
GATE_UP = (Part("gate", WIDE), Part("up", WIDE))

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """A model (parameter -> layout), a checkpoint, and the parameters after loading."""

    model: dict[str, ShardDim]
    disk: Tensors
    expected: Tensors
    ignored: tuple[str, ...] = ()
    config: dict[str, object] = field(default_factory=dict)


class Leaf(nn.Module):
    """A module with parameters of any layout."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[str, ShardDim] = {}

    def shard_dims(self) -> dict[str, ShardDim]:
        return self.layouts


def build(layouts: dict[str, ShardDim]) -> nn.Module:
    """The model with these parameters, on meta."""
    root = nn.Module()
    for name, layout in layouts.items():
        *path, leaf = name.split(".")
        module = root
        for step in path:
            if step not in dict(module.named_children()):
                module.add_module(step, Leaf())
            module = module.get_submodule(step)
        module.layouts[leaf] = layout
        parameter = nn.Parameter(torch.empty(layout.shape, device="meta"))
        module.register_parameter(leaf, parameter)
    return root


def plain(*shape: int) -> ShardDim:
    return ShardDim("replicated", shape)


def fused(parts: tuple[Part, ...], *others: int, dim: int = 0) -> ShardDim:
    """A dimension made of parts, among `others`."""
    shape = list(others)
    shape.insert(dim, sum(part.size for part in parts))
    return ShardDim("replicated", tuple(shape), dim, parts)


def split(kind: ShardKind, shape: tuple[int, ...], dim: int, *parts: Part) -> ShardDim:
    return ShardDim(kind, shape, dim, parts or (Part("all", shape[dim]),))


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def both_layers(one: Callable[[int], Example]) -> Example:
    """`one` for layer 0 and layer 1."""
    first, second = one(0), one(1)
    return Example(
        {**first.model, **second.model},
        {**first.disk, **second.disk},
        {**first.expected, **second.expected},
    )


def modules_and_parameters() -> Example:
    model = {
        "norm.weight": plain(5),
        "norm.bias": plain(5),
        "proj.weight": plain(3, 5),
        "proj.bias": plain(3),
        "scale.weight": plain(4),
    }
    norm, proj = ("model.norm.weight", "model.norm.bias"), ("model.out.weight", "model.out_offset")
    names = (*norm, *proj, "model.gain")
    disk = {name: rand(*layout.shape) for name, layout in zip(names, model.values(), strict=True)}
    return Example(model, disk, dict(zip(model, disk.values(), strict=True)))


def scopes() -> Example:
    def one(i: int) -> Example:
        up, down, o = rand(8, 5), rand(5, 8), rand(5, 5)
        at = f"model.layers.{i}"
        targets = [f"layers.{i}.{name}.weight" for name in ("mlp.up", "mlp.down", "attn.o")]
        return Example(
            {name: plain(*x.shape) for name, x in zip(targets, (up, down, o), strict=True)},
            {
                f"{at}.feed_forward.w1.weight": up,
                f"{at}.feed_forward.w2.weight": down,
                f"{at}.attention.wo.weight": o,
            },
            dict(zip(targets, (up, down, o), strict=True)),
        )

    return both_layers(one)


def optional() -> Example:
    weight = rand(5)
    return Example(
        {"norm.weight": plain(5)}, {"model.norm.weight": weight}, {"norm.weight": weight}
    )


def arithmetic() -> Example:
    def one(i: int) -> Example:
        up, down, norm = rand(8, 5), rand(5, 8), rand(5)
        at = f"layers.{i}"
        return Example(
            {
                f"{at}.up.weight": plain(8, 5),
                f"{at}.down.weight": plain(5, 8),
                f"{at}.norm.weight": plain(5),
            },
            {
                f"blocks.{2 * i}.linear.weight": up,
                f"blocks.{2 * i + 1}.linear.weight": down,
                f"norm_{i + 1}.weight": norm,
            },
            {f"{at}.up.weight": up, f"{at}.down.weight": down, f"{at}.norm.weight": norm},
        )

    return both_layers(one)


def stacking() -> Example:
    count = 11  # as texts, 10 sorts before 2
    w1, w2, w3 = rand(count, WIDE, 5), rand(count, 5, WIDE), rand(count, WIDE, 5)
    at = "layers.0.experts"
    disk = {
        f"{at}.{e}.{name}.weight": w[e]
        for name, w in (("w1", w1), ("w2", w2), ("w3", w3))
        for e in range(count)
    }
    return Example(
        {
            f"{at}.gate_up.weight": fused(GATE_UP, count, 5, dim=1),
            f"{at}.down.weight": plain(count, 5, WIDE),
        },
        disk,
        {f"{at}.gate_up.weight": torch.cat([w1, w3], dim=1), f"{at}.down.weight": w2},
    )


def merging() -> Example:
    def one(i: int) -> Example:
        q, k, v = (rand(part.size, HIDDEN) for part in QKV)
        at = f"model.layers.{i}.self_attn"
        return Example(
            {f"layers.{i}.qkv.weight": fused(QKV, HIDDEN)},
            {f"{at}.{x}_proj.weight": t for x, t in zip("qkv", (q, k, v), strict=True)},
            {f"layers.{i}.qkv.weight": torch.cat([q, k, v])},
        )

    return both_layers(one)


def a_list_with_options() -> Example:
    q, kv = rand(24, HIDDEN), rand(24, HIDDEN)
    return Example(
        {"layers.0.qkv.weight": fused(QKV, HIDDEN)},
        {"q_0.weight": q, "kv_0.weight": kv},
        {"layers.0.qkv.weight": torch.cat([q, kv[12:], kv[:12]])},
    )


def one_tensor(
    source: str, parts: tuple[Part, ...], straight: Callable[[torch.Tensor], torch.Tensor]
) -> Example:
    """A fused weight and its bias, which `straight` puts in the model's order."""
    rows = sum(part.size for part in parts)
    weight, bias = rand(rows, HIDDEN), rand(rows)
    name = "layers.0.gate_up" if parts is GATE_UP else "layers.0.qkv"
    return Example(
        {f"{name}.weight": fused(parts, HIDDEN), f"{name}.bias": fused(parts)},
        {f"{source}.weight": weight, f"{source}.bias": bias},
        {f"{name}.weight": straight(weight), f"{name}.bias": straight(bias)},
    )


def parts() -> Example:
    return one_tensor("h.0.fused", QKV, lambda x: torch.cat([x[12:36], x[36:], x[:12]]))


def per_head() -> Example:
    def neox(x: torch.Tensor) -> torch.Tensor:
        by_head = x.view(HEADS, 3, DIM, *x.shape[1:])
        return by_head.transpose(0, 1).reshape(x.shape)

    return one_tensor("h.0.query_key_value", MHA, neox)


def per_kv_head() -> Example:
    def falcon(x: torch.Tensor) -> torch.Tensor:
        grouped = x.view(KV, HEADS // KV + 2, DIM, *x.shape[1:])
        shares = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        return torch.cat([share.reshape(-1, *x.shape[1:]) for share in shares])

    return one_tensor("h.0.wqkv", QKV, falcon)


def per_row() -> Example:
    return one_tensor("h.0.gate_up_proj", GATE_UP, lambda x: torch.cat([x[::2], x[1::2]]))


def per_block() -> Example:
    def codegen(x: torch.Tensor) -> torch.Tensor:
        blocks = x.view(2, 3, HEADS * DIM // 2, *x.shape[1:])
        q, v, k = (blocks[:, n].reshape(HEADS * DIM, *x.shape[1:]) for n in range(3))
        return torch.cat([q, k, v])

    return one_tensor("h.0.qkv_proj", MHA, codegen)


def transpose() -> Example:
    example = one_tensor("h.0.c_attn", QKV, lambda x: x)
    example.disk["h.0.c_attn.weight"] = example.disk["h.0.c_attn.weight"].T
    return example


def rearrange() -> Example:
    stored = rand(HIDDEN, EXPERTS * WIDE)
    straight = stored.view(HIDDEN, EXPERTS, WIDE).permute(1, 0, 2)
    name = "layers.0.down.weight"
    return Example({name: plain(EXPERTS, HIDDEN, WIDE)}, {"experts_0": stored}, {name: straight})


def half(x: torch.Tensor, heads: int, dims: int = DIM) -> torch.Tensor:
    """The first `dims` rows of every head from pairs side by side to halves."""
    by_head = x.view(heads, DIM, -1)
    turned = by_head[:, :dims].view(heads, dims // 2, 2, -1).transpose(1, 2)
    straight = torch.cat([turned.reshape(heads, dims, -1), by_head[:, dims:]], dim=1)
    return straight.reshape(x.shape)


def rope() -> Example:
    q, k, v = (rand(part.size, HIDDEN) for part in QKV)
    return Example(
        {"layers.0.qkv.weight": fused(QKV, HIDDEN)},
        {f"blk.0.attn_{x}.weight": t for x, t in zip("qkv", (q, k, v), strict=True)},
        {"layers.0.qkv.weight": torch.cat([half(q, HEADS), half(k, KV), v])},
    )


def rope_of_some_parts() -> Example:
    def straight(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.split([part.size for part in QKV])
        return torch.cat([half(q, HEADS, 4), half(k, KV, 4), v])

    return one_tensor("h.0.qkv", QKV, straight)


def unstack() -> Example:
    stack = rand(EXPERTS, WIDE, HIDDEN)
    names = [f"layers.0.experts.{e}.up.weight" for e in range(EXPERTS)]
    return Example(
        {name: plain(WIDE, HIDDEN) for name in names},
        {"layers.0.w1.weight": stack},
        dict(zip(names, stack, strict=True)),
    )


def split_rows() -> Example:
    whole = rand(48, HIDDEN)
    shares = dict(zip("qkv", whole.split([24, 12, 12]), strict=True))
    return Example(
        {f"layers.0.{x}.weight": plain(*share.shape) for x, share in shares.items()},
        {"h.0.fused.weight": whole},
        {f"layers.0.{x}.weight": share for x, share in shares.items()},
    )


def slice_and_pad() -> Example:
    positions, words = rand(14, 5), rand(9, 5)
    return Example(
        {"positions.weight": plain(10, 5), "embed.weight": plain(12, 5)},
        {"model.embed_positions.weight": positions, "model.embed_tokens.weight": words},
        {
            "positions.weight": positions[2:12],
            "embed.weight": torch.cat([words, torch.zeros(3, 5)]),
        },
    )


def affine_and_negative_exp() -> Example:
    scale, decay = rand(5), rand(5)
    return Example(
        {"layers.0.scale.weight": plain(5), "layers.0.decay.weight": plain(5)},
        {"mult_0.weight": scale, "A_log_0": decay},
        {"layers.0.scale.weight": 0.5 * scale + 1, "layers.0.decay.weight": -decay.exp()},
    )


def any_way() -> Example:
    """Layer 0 keeps the three apart, layer 1 holds them in one tensor."""
    q, k, v = (rand(part.size, HIDDEN) for part in QKV)
    whole = rand(48, HIDDEN)
    return Example(
        {f"layers.{i}.qkv.weight": fused(QKV, HIDDEN) for i in (0, 1)},
        {
            **{f"model.layers.0.{x}_proj.weight": t for x, t in zip("qkv", (q, k, v), strict=True)},
            "model.layers.1.qkv_proj.weight": whole,
        },
        {"layers.0.qkv.weight": torch.cat([q, k, v]), "layers.1.qkv.weight": whole},
    )


def any_in_a_list() -> Example:
    """Layer 0 has the first name of k, layer 1 the second."""
    q, k, v = (rand(part.size, HIDDEN) for part in QKV)
    at = [f"model.layers.{i}" for i in (0, 1)]
    disk = {f"{layer}.q_proj.weight": q.clone() for layer in at}
    disk |= {f"{layer}.v_proj.weight": v.clone() for layer in at}
    disk |= {f"{at[0]}.k_proj.weight": k, f"{at[1]}.key.weight": k.clone()}
    return Example(
        {f"layers.{i}.qkv.weight": fused(QKV, HIDDEN) for i in (0, 1)},
        disk,
        {
            "layers.0.qkv.weight": torch.cat([q, k, v]),
            "layers.1.qkv.weight": torch.cat([q, half(k, KV), v]),
        },
    )


def fill() -> Example:
    weight = rand(3, 5)
    return Example(
        {"proj.weight": plain(3, 5), "proj.bias": plain(3), "scale.weight": plain(4)},
        {"model.proj.weight": weight},
        {"proj.weight": weight, "proj.bias": torch.zeros(3), "scale.weight": torch.ones(4)},
    )


def dtype() -> Example:
    norm, gate = rand(5).bfloat16(), rand(4, 5)
    return Example(
        {"norm.weight": plain(5), "router.weight": plain(4, 5)},
        {"model.norm.weight": norm, "model.gate.weight": gate},
        {"norm.weight": norm, "router.weight": gate},  # loaded in bfloat16
    )


def prefixes() -> Example:
    norm, head = rand(5), rand(9, 5)
    return Example(
        {"norm.weight": plain(5), "head.weight": plain(9, 5)},
        {"language_model.model.norm.weight": norm, "language_model.lm_head.weight": head},
        {"norm.weight": norm, "head.weight": head},
    )


def roots() -> Example:
    norm, head = rand(5), rand(9, 5)
    return Example(
        {"norm.weight": plain(5), "head.weight": plain(9, 5)},
        {"model.language_model.norm.weight": norm, "lm_head.weight": head},
        {"norm.weight": norm, "head.weight": head},
    )


def quantization() -> Example:
    norm, scales = rand(5), rand(2, 3)
    values = rand(8, 5).to(torch.float8_e4m3fn)
    proj = values.float() * scales.repeat_interleave(4, 0).repeat_interleave(2, 1)[:, :5]
    return Example(
        {"norm.weight": plain(5), "proj.weight": plain(8, 5)},
        {
            "model.norm.weight": norm,
            "model.proj.weight": values,
            "model.proj.weight_descale": scales,
        },
        {"norm.weight": norm, "proj.weight": proj},
        config={"quantization_config": {"quant_method": "my_method"}},
    )


def cache_scales() -> Example:
    norm = rand(5)
    return Example({"norm.weight": plain(5)}, {"model.norm.weight": norm}, {"norm.weight": norm})


def dequantize() -> Example:
    values, scale = rand(4, 5).to(torch.float8_e5m2), rand(1)
    blocks = torch.full((EXPERTS, 3, 2, 16), 0x2F, dtype=torch.uint8)  # -6, 1, -6, 1, ...
    scales = torch.full((EXPERTS, 3, 2), 126, dtype=torch.uint8)  # a half
    experts = torch.tensor([-3.0, 0.5]).repeat(32).expand(EXPERTS, 3, 64).transpose(1, 2)
    return Example(
        {"up.weight": plain(4, 5), "experts.weight": plain(EXPERTS, 64, 3)},
        {
            "model.up.weight": values,
            "model.up.weight_scale": scale,
            "model.experts.down_proj_blocks": blocks,
            "model.experts.down_proj_scales": scales,
        },
        {"up.weight": values.float() * scale, "experts.weight": experts},
    )


def ignore() -> Example:
    norm = rand(5)
    left = {"model.layers.0.attn.rotary_emb.inv_freq": rand(3), "mtp.0.proj.weight": rand(2)}
    return Example(
        {"norm.weight": plain(5)},
        {"model.norm.weight": norm, **left},
        {"norm.weight": norm},
        ignored=tuple(left),
    )


def tp() -> Example:
    embed, gate, up, down = rand(9, 5), rand(8, 5), rand(8, 5), rand(5, 8)
    at = "model.layers.0"
    return Example(
        {
            "embed.weight": split("vocab", (9, 5), 0),
            "layers.0.mlp.gate_up.weight": split("column", (16, 5), 0, *GATE_UP),
            "layers.0.mlp.down.weight": split("row", (5, 8), 1),
        },
        {
            "model.embed_tokens.weight": embed,
            f"{at}.gate_proj.weight": gate,
            f"{at}.up_proj.weight": up,
            f"{at}.down_proj.weight": down,
        },
        {
            "embed.weight": embed,
            "layers.0.mlp.gate_up.weight": torch.cat([gate, up]),
            "layers.0.mlp.down.weight": down,
        },
    )


# The comment at the head of the YAML -> the example.
EXAMPLES: dict[str, Callable[[], Example]] = {
    "modules and parameters": modules_and_parameters,
    "scopes": scopes,
    "optional": optional,
    "arithmetic": arithmetic,
    "stacking": stacking,
    "merging": merging,
    "a list with options": a_list_with_options,
    "parts": parts,
    "per head": per_head,
    "per kv_head": per_kv_head,
    "per row": per_row,
    "per block": per_block,
    "transpose": transpose,
    "rearrange": rearrange,
    "rope": rope,
    "rope of some parts": rope_of_some_parts,
    "unstack": unstack,
    "split": split_rows,
    "slice and pad": slice_and_pad,
    "affine and negative_exp": affine_and_negative_exp,
    "any": any_way,
    "any in a list": any_in_a_list,
    "fill": fill,
    "dtype": dtype,
    "prefixes": prefixes,
    "roots": roots,
    "quantization": quantization,
    "cache_scales": cache_scales,
    "dequantize": dequantize,
    "ignore": ignore,
    "tp": tp,
}
