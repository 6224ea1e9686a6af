"""How a block's constructor marks a field that is itself a block.

A field annotated `Annotated[Any, BlockRole("norm")]` holds, in the YAML, a mapping with `block:`
that names any registered block of that role; the constructor receives the validated spec and
builds it with `ctx.child(spec, name, width=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockRole:
    """Marks a constructor field as a nested block; `role` is the `role` its class must have."""

    role: str
