"""The roles of tensors in the feed-forward half of a layer: MLP, experts, router, shared expert."""

from __future__ import annotations

from assembler.drafting import vocabulary as words
from assembler.drafting.inventory import Tensor


def feed_forward_part(tensor: Tensor) -> str | None:
    """The role of a tensor that is not attention's, such as "mlp.up" or "moe.experts.gate"."""
    name = tensor.module
    if words.SHARED_GATE.search(name):
        return "shared_gate"
    if words.SHARED.search(name):
        place = "shared"
    elif tensor.stacked or words.IN_EXPERTS.search(name) or len(tensor.shape) == 3:
        place = "moe.experts"
    elif words.ROUTER.search(name):
        return "moe.router"
    else:
        place = "mlp"
    base = name[:-5] if name.endswith("_bias") and not tensor.leaf else name
    found = next((role for role, words_ in words.FEED_FORWARD_ROLES if words_.search(base)), None)
    return None if found is None else f"{place}.{found}"
