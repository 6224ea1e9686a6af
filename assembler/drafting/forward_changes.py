"""The feed-forward half: MLP, mixture of experts, shared expert; their widths and biases."""

from __future__ import annotations

from assembler.drafting import templates
from assembler.drafting.comparison import ABSENT, SEEN, Comparison
from assembler.drafting.kinds_of_layers import dense_and_sparse, only_sparse

_SPARSE_ONLY = ("moe", "shared", "shared_gate")


def change_forward(found: Comparison) -> None:
    """Bring MLP, mixture and shared expert in line with the tensors."""
    for place in ("mlp", "shared"):
        _plain(found, place)
    _mixture(found)
    gated = found.anatomy.has("shared_gate")
    if gated and not isinstance(found.block("shared_gate"), dict):
        found.replace("shared_gate", {"block": "Linear", "out_size": 1})
    elif not gated and isinstance(found.block("shared_gate"), dict):
        found.drop("shared_gate")
    if "layers.moe.router" not in found.anatomy.parts:
        return
    if found.anatomy.has("mlp.down") and found.off("mlp.", "moe."):
        dense_and_sparse(found.sheet, found.anatomy)
        _drop_in_variants(found)
    elif found.spec is not None and found.off("mlp."):
        only_sparse(found.sheet)


def _drop_in_variants(found: Comparison) -> None:
    """What only the dense layers have, and what only the sparse ones."""
    dropped = [("sparse", "mlp"), *(("dense", name) for name in _SPARSE_ONLY)]
    for variant, name in dropped:
        if isinstance(found.block(name), dict):
            path = ("layers", "variants", variant, "blocks", name)
            found.sheet.set(path, None, "as the tensors lie")


def _plain(found: Comparison, place: str) -> None:
    """An MLP: gated or not, its width, its biases."""
    block = found.block(place)
    if not found.anatomy.has(f"{place}.down"):
        if isinstance(block, dict) and found.off(f"{place}.") and not _dropped(found, place):
            found.drop(place)
        return
    gated = found.anatomy.has(f"{place}.gate_up")
    if not isinstance(block, dict) or block.get("block") != ("GatedMLP" if gated else "MLP"):
        like = block or found.block("mlp") or (found.block("moe") or {}).get("experts")
        found.replace(place, templates.mlp_block(found.sheet, found.anatomy, place, like))
        return
    found.flag(place, "bias", f"{place}.down.bias")
    if place == "mlp":
        _learned_activation(found)
    if gated:
        found.nested_norm(place, "inner_norm", f"{place}.inner_norm.weight")
    built, width = found.built(place), templates.width(found.anatomy, place)
    if built is not None and width not in (None, built.intermediate_size):
        value = templates.width_ref(found.sheet, found.anatomy, place)
        found.sheet.set_block(place, "intermediate_size", value, "from the shapes of the tensors")


def _dropped(found: Comparison, name: str) -> bool:
    """Whether some variant takes the block back, which then has to be there to be taken."""
    variants = found.sheet.get(("layers", "variants")) or {}
    blocks = [(contents or {}).get("blocks") or {} for contents in variants.values()]
    return any(name in own and own[name] is None for own in blocks)


def _learned_activation(found: Comparison) -> None:
    learned = isinstance(found.block("mlp").get("activation"), dict)
    if learned != found.anatomy.has("mlp.act"):
        block = {"block": "XIELU"} if not learned else templates.activation(found.sheet, None)
        found.sheet.set_block("mlp", "activation", block, SEEN)


def _mixture(found: Comparison) -> None:
    moe, sheet = found.block("moe"), found.sheet
    if not found.anatomy.has("moe.experts"):
        if isinstance(moe, dict) and found.off("moe."):
            found.drop("moe")
        return
    if not isinstance(moe, dict):
        found.replace("moe", templates.moe_block(sheet, found.anatomy, found.block("mlp")))
        if not found.anatomy.has("mlp.down") and isinstance(found.block("mlp"), dict):
            sheet.set(("layers", "blocks", "mlp"), None, ABSENT)
        return
    router = ("layers", "blocks", "moe", "router")
    for field, leaf in (
        ("bias", "moe.router.bias"),
        ("selection_bias", "moe.router.selection_bias"),
    ):
        wanted = found.wants(leaf)
        if wanted is not None and (sheet.get((*router, field)) or False) != wanted:
            sheet.set((*router, field), wanted, SEEN)
    experts = ("layers", "blocks", "moe", "experts")
    biased = found.wants("moe.experts.down.bias")
    if biased is not None and bool(sheet.get((*experts, "bias"))) != biased:
        sheet.set((*experts, "bias"), biased, SEEN)
    built, width = found.built("moe"), templates.width(found.anatomy, "moe.experts")
    if built is not None and width not in (None, built.experts.intermediate_size):
        value = templates.width_ref(sheet, found.anatomy, "moe.experts")
        sheet.set((*experts, "intermediate_size"), value, "from the shapes of the tensors")
