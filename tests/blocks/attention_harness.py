"""What the tests of attention share: giving ours the weights of a reference, and its masks."""

from __future__ import annotations

import torch
from torch import nn

from assembler.blocks.attention import RopeAttn

# Where transformers keeps what hangs on our attention blocks.
NORMS = {
    "q_norm": ("q_norm", "query_layernorm", "q_layernorm"),
    "k_norm": ("k_norm", "key_layernorm", "k_layernorm"),
    "out_norm": ("attn_sub_norm",),
    "gate.proj": ("gate_proj",),
}


def copy_weights(reference: nn.Module, ours: RopeAttn) -> None:
    """Fuse the reference's projections into ours; norms, gates, sinks and o are copied."""
    projections = (reference.q_proj, reference.k_proj, reference.v_proj)
    state = {"o.weight": reference.o_proj.weight}
    if reference.o_proj.bias is not None:
        state["o.bias"] = reference.o_proj.bias
    for leaf in dict(reference.q_proj.named_parameters()):
        state[f"qkv.{leaf}"] = torch.cat([getattr(p, leaf) for p in projections])
    for target, names in NORMS.items():
        for module in filter(None, (getattr(reference, name, None) for name in names)):
            norms = getattr(module, "norms", None)  # one for each head
            for leaf, value in (module if norms is None else norms[0]).named_parameters():
                if norms is not None:
                    value = torch.stack([getattr(norm, leaf) for norm in norms])
                state[f"{target}.{leaf}"] = value
    if hasattr(reference, "sinks"):
        state["sinks"] = reference.sinks
    ours.load_state_dict(state)


def causal_mask(length: int, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """[1, 1, L, L] to add to the scores."""
    tokens = torch.arange(length)
    distance = tokens[:, None] - tokens
    seen = (distance >= 0) & (distance < (window or length))
    if chunk is not None:
        seen &= tokens[:, None] // chunk == tokens // chunk
    return torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]
