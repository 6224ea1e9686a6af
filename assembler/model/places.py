"""Where the parts of a `ModelSpec` were written: file:line of its blocks and equations."""

from __future__ import annotations

from assembler.model.spec import ModelSpec


def located_wiring(spec: ModelSpec, kind: str | None) -> tuple[tuple[str, ...], list[str]]:
    """The equations of a kind of layer (None: of the model) and where each was written."""
    place, variants = _written(spec, kind)
    lines = spec.wiring if kind is None else spec.kinds[kind].wiring
    own = [(*place, "variants", name, "wiring") for name in variants]
    written = (key for key in own if (*key, 0) in spec.sources)
    key = next(written, (*place, "wiring"))
    return lines, [spec.sources.get((*key, n), spec.name) for n in range(len(lines))]


def block_places(spec: ModelSpec, kind: str | None, name: str) -> tuple[str, ...]:
    """Where a block of a kind of layer (None: of the model) was written; what prevails is first."""
    place, variants = _written(spec, kind)
    keys = [(*place, "variants", variant, "blocks") for variant in reversed(variants)]
    keys += [(*place, "blocks") if place else ()]
    written = (spec.sources.get((*key, name)) for key in keys)
    return tuple(where for where in written if where) or (spec.name,)


def _written(spec: ModelSpec, kind: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The key in the YAML of a kind of layer (None: of the model), and its variants there."""
    return ((), spec.variants) if kind is None else (("layers",), spec.kinds[kind].variants)
