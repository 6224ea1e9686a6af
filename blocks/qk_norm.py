"""The norms of queries and keys (Henry et al., 2020): over each head, or over all of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.norms import LayerNorm, NormSpec, norm_fuses
from assembler.blocks.parallel import Part
from assembler.blocks.roles import BlockRole
from assembler.kernels.head_steps import MOST_AT_ONCE, HeadNorm

QKNormSpec: TypeAlias = Annotated[Any, BlockRole("qk_norm")]
"""A field that holds `{block: QKNorm, norm: {block: RMSNorm, eps: 1.0e-6}, over: full}`, or the
norm block alone where the rest is as usual."""


class QKNorm(nn.Module):
    """How attention norms its queries and keys, each with weights of their own.

    A norm block in its place is its `norm`, with the other fields as they are by default. Its
    weights belong to the attention block, whose `q_norm` and `k_norm` it makes.

    Args:
        norm: Norm block, made once for the queries and once for the keys (Qwen3, Gemma 3).
        over: What one norm spans: a "head", all with one weight; "each_head", with a weight of its
            own (Cohere, StableLM); or the "full" projection (OLMo 2).
        position: Whether it comes "before" or "after" the rotation (Hunyuan, nanochat).
    """

    role: ClassVar[str] = "qk_norm"
    short_form: ClassVar[str] = "norm"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        norm: NormSpec,
        over: Literal["head", "each_head", "full"] = "head",
        position: Literal["before", "after"] = "before",
    ) -> None:
        super().__init__()
        self.norm_spec = norm
        self.over = over
        self.after_rope = position == "after"

    def make(self, ctx: BuildContext, part: Part) -> nn.Module:
        """The norm `<part's name>_norm` of the heads in `part`, whose unit is a head.

        Its weight is [head_dim], shared by all heads ("head"), [heads, head_dim] ("each_head") or
        [heads * head_dim] ("full").

        Args:
            ctx: that of the attention block.
            part: the rows of all heads of the queries, or of the keys.
        """
        name = f"{part.name}_norm"
        if self.over == "full":
            return ctx.child(self.norm_spec, name, part=part)
        heads = part if self.over == "each_head" else None
        return ctx.child(self.norm_spec, name, width=part.unit, heads=heads)

    def forward(self, norm: nn.Module, heads: torch.Tensor) -> torch.Tensor:
        """`heads` [..., H, D], normed by what `make` made for them."""
        if self.over != "full":
            return norm(heads)
        return norm(heads.flatten(-2)).view(heads.shape)

    def of_heads(self, q_norm: nn.Module, k_norm: nn.Module) -> HeadNorm | None:
        """The norms of queries and keys as a fused kernel takes them; None: it has to call them.

        That is if they are of an unknown kind, span heads of other ranks too or more numbers than
        a program holds, or somebody listens to them (hooks).
        """
        if not (norm_fuses(q_norm) and norm_fuses(k_norm)) or q_norm.shape[0] > MOST_AT_ONCE:
            return None
        return HeadNorm(
            layer_norm=type(q_norm) is LayerNorm,
            eps=q_norm.eps,
            offset=q_norm.offset,
            q_weight=q_norm.weight,
            k_weight=k_norm.weight,
            q_bias=q_norm.bias,
            k_bias=k_norm.bias,
            after_rope=self.after_rope,
            all_heads=self.over == "full",
        )

    def extra_repr(self) -> str:
        return f"over={self.over}, position={'after' if self.after_rope else 'before'}"
