"""How many heads of which width an attention block has, and how ranks share them."""

from __future__ import annotations

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part
from assembler.errors import SpecError


def head_parts(
    ctx: BuildContext, num_heads: int, num_kv_heads: int | None, head_dim: int | None
) -> tuple[Part, Part, Part]:
    """The rows of q, k and v, in units of a head.

    A null for `num_kv_heads` means as many as there are query heads, one for `head_dim` the width
    divided by them.

    Raises:
        SpecError: they do not fit together.
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    problems = []
    if num_heads % kv_heads:
        problems.append(f"num_heads {num_heads} is not a multiple of num_kv_heads {kv_heads}")
    if head_dim is None and ctx.hidden_size % num_heads:
        problems.append(
            f"hidden_size {ctx.hidden_size} is not a multiple of num_heads {num_heads}; "
            "give head_dim"
        )
    if problems:
        raise SpecError(f"{ctx.path}: {'; '.join(problems)}")
    dim = ctx.hidden_size // num_heads if head_dim is None else head_dim
    return (
        Part("q", num_heads * dim, unit=dim, bundle=num_heads // kv_heads),
        Part("k", kv_heads * dim, unit=dim, replicate=True),
        Part("v", kv_heads * dim, unit=dim, replicate=True),
    )
