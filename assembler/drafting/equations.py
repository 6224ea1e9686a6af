"""Wiring for a layer, from which norms and blocks it has and the multipliers its config names."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.sheet import Sheet

_CALLED = re.compile(r"\b([a-z_]\w*)\(")
_FUNCTIONS = frozenset({"sqrt", "softcap", "tanh", "exp", "log", "min", "max", "sigmoid"})
PARALLEL_FIELDS = ("use_parallel_residual", "parallel_attn", "parallel_residual")
_RESIDUAL_FIELDS = ("residual_multiplier", "residual_scale")


def blocks_called(wiring: Sequence[str]) -> frozenset[str]:
    """The blocks that equations use."""
    return frozenset(n for line in wiring for n in _CALLED.findall(line)) - _FUNCTIONS


def is_after(wiring: Sequence[str]) -> bool:
    """Whether the norms stand behind the branches, and what a branch reads is not normed."""
    return any("attn_norm(attn(" in re.sub(r"post_attn_norm", "", line) for line in wiring)


def layer_wiring(blocks: Collection[str], anatomy: Anatomy, sheet: Sheet) -> list[str]:
    """The equations of a layer with these blocks."""
    times = _residual(sheet)
    if "mlp_norm" not in blocks and "attn_norm" in blocks:  # side by side behind one norm
        both = f"attn(h) + {_feed(blocks, 'h')}"
        return ["h = attn_norm(x)", f"x = x + {times}({both})" if times else f"x = x + {both}"]
    if anatomy.after_branches:
        return [
            f"x = x + {times}attn_norm(attn(x))",
            f"x = x + {times}mlp_norm({_feed(blocks, 'x')})",
        ]
    attention = "attn(attn_norm(x))"
    if "post_attn_norm" in blocks:
        attention = f"post_attn_norm({attention})"
    if _is_parallel(sheet):
        return [f"x = x + {times}{attention} + {times}{_feed(blocks, 'mlp_norm(x)')}"]
    named = ["h = mlp_norm(x)"] if "shared" in blocks else []
    branch = _feed(blocks, "h" if named else "mlp_norm(x)")
    if "post_mlp_norm" in blocks:
        branch = f"post_mlp_norm({branch})"
    elif times and named:
        branch = f"({branch})"
    return [f"x = x + {times}{attention}", *named, f"x = x + {times}{branch}"]


def _feed(blocks: Collection[str], h: str) -> str:
    """What the feed-forward blocks make of `h`."""
    forward = "moe" if "moe" in blocks else "mlp"
    if "shared" not in blocks:
        return f"{forward}({h})"
    gate = f"sigmoid(shared_gate({h})) * " if "shared_gate" in blocks else ""
    return f"{forward}({h}) + {gate}shared({h})"


def _residual(sheet: Sheet) -> str:
    field = sheet.field(*_RESIDUAL_FIELDS)
    if field is not None:
        return f"${{hf:{field}}} * "
    if sheet.field("scale_depth"):
        return "${hf:scale_depth} / sqrt(num_layers) * "
    return ""


def _is_parallel(sheet: Sheet) -> bool:
    field = sheet.field(*PARALLEL_FIELDS)
    return field is not None and sheet.fields.get(field) is True


def model_wiring(blocks: Collection[str], sheet: Sheet) -> list[str]:
    """The equations of the model with these blocks outside of its layers."""
    x = "embed(tokens)"
    if field := sheet.field("embedding_multiplier"):
        x = f"${{hf:{field}}} * {x}"
    if "positions" in blocks:
        x = f"{x} + positions(tokens)"
    if "embed_norm" in blocks:
        x = f"embed_norm({x})"
    logits = "lm_head(norm(x))" if "norm" in blocks else "lm_head(x)"
    if field := sheet.field("dim_model_base"):
        logits = f"lm_head(norm(x) / (hidden_size / ${{hf:{field}}}))"
    elif field := sheet.field("logits_scaling"):
        logits = f"{logits} / ${{hf:{field}}}"
    elif field := sheet.field("logit_scale"):
        logits = f"${{hf:{field}}} * {logits}"
    elif field := sheet.field("final_logit_softcapping", "logit_cap"):
        logits = f"softcap({logits}, ${{hf:{field}}})"
    return [f"x = layers({x})", f"logits = {logits}"]
