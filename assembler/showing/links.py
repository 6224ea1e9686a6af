"""Which tensors on disk fill which parameters, folded over the layers: a plan for readers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from assembler.showing.names import LAYER, expand, split_layer
from assembler.weights.fold import Form, blank_indices, fill_form, format_indices
from assembler.weights.ops import Op, Unsqueeze
from assembler.weights.plan import LoadPlan, Piece
from assembler.weights.quantized import tensors_of

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Link:
    """Tensors that do the same for the same parameter in several layers."""

    parameter: str  # layers.{i}.attn.qkv.weight
    layers: tuple[int, ...]  # in which it holds; () of a parameter outside the layers
    part: str  # of a fused parameter, "" where nothing is fused
    rows: str  # of the parameter, that they fill; "" for all
    source: str  # model.layers.{i}.self_attn.q_proj.weight
    scales: str  # the tensors that hold the scales of quantised values, or ""
    dtype: str  # on disk
    shape: tuple[int, ...]  # of each, on disk
    ops: tuple[str, ...]  # what happens on the way
    nbytes: int  # on disk, of all that fill it in one layer

    def names(self, layer: int | None = None) -> list[str]:
        """The tensors on disk that fill it, in one layer if it is in the layers."""
        patterns = filter(None, (self.source, self.scales))
        return [name for pattern in patterns for name in expand(pattern, layer)]

    @property
    def count(self) -> int:
        """In how many places it holds."""
        return len(self.layers) or 1

    def within(self, layers: Collection[int]) -> Link | None:
        """What of it holds in some layers; None if nothing does."""
        shared = tuple(layer for layer in self.layers if layer in layers)
        return replace(self, layers=shared) if shared else None


class _Alike(NamedTuple):
    """What pieces have in common that differ in their indices only."""

    parameter: str
    part: str
    form: Form  # of the tensors' names
    scales: Form  # of those with the scales; () where there are none
    dtype: str
    shape: tuple[int, ...]
    ops: tuple[Op, ...]


# By layer, with their indices.
_Pieces = Mapping[int | None, Sequence[tuple[Indices, Piece]]]


def find_links(plan: LoadPlan) -> dict[str, tuple[Link, ...]]:
    """The links of a plan, by parameter, in the order in which they fill it."""
    groups: dict[_Alike, dict[int | None, list[tuple[Indices, Piece]]]] = {}
    for piece in plan.pieces:
        parameter, layer = split_layer(piece.target)
        form, scales, indices = _forms(piece)
        info = piece.info
        alike = _Alike(parameter, piece.part, form, scales, info.dtype, info.shape, piece.ops)
        groups.setdefault(alike, {}).setdefault(layer, []).append((indices, piece))
    found: dict[str, list[tuple[int, Link]]] = {}
    for alike, pieces in groups.items():
        start = _start(next(iter(pieces.values()))[0][1])
        found.setdefault(alike.parameter, []).extend(
            (start, link) for link in _links(alike, pieces)
        )
    return {
        parameter: tuple(link for _, link in sorted(links, key=lambda item: item[0]))
        for parameter, links in found.items()
    }


def _forms(piece: Piece) -> tuple[Form, Form, Indices]:
    """A tensor's name and that of its scales, if it has any, without their common indices."""
    values, *pair = tensors_of(piece.info)
    form, indices = blank_indices(values.name)
    if not pair:
        return form, (), indices
    scales, same = blank_indices(pair[0].name)
    return form, scales if same == indices else tuple(pair[0].name.split(".")), indices


def _links(alike: _Alike, pieces: _Pieces) -> Iterator[Link]:
    """One link for all layers where the names follow a rule, else one for each layer or tensor."""
    by_layer = {layer: [indices for indices, _ in some] for layer, some in pieces.items()}
    holes = _holes(by_layer)
    if holes is not None:
        yield _link(alike, holes, pieces)
        return
    for layer, some in pieces.items():
        holes = _holes({layer: by_layer[layer]})
        if holes is not None:
            yield _link(alike, holes, {layer: some})
            continue
        for indices, piece in some:
            yield _link(alike, list(map(str, indices)), {layer: [(indices, piece)]})


def _holes(by_layer: Mapping[int | None, Sequence[Indices]]) -> list[str] | None:
    """What stands for each index of the names; None if they follow no rule."""
    holes, count = [], 1
    for position in range(len(next(iter(by_layer.values()))[0])):
        values = {layer: {i[position] for i in rows} for layer, rows in by_layer.items()}
        shifts = {
            n - layer if layer is not None else None for layer, ns in values.items() for n in ns
        }
        first = next(iter(values.values()))
        if None not in shifts and len(shifts) == 1:
            shift = shifts.pop()
            holes.append(f"{{i{shift:+d}}}" if shift else LAYER)
        elif all(ns == first for ns in values.values()):
            count *= len(first)
            holes.append("{" + format_indices(first) + "}" if len(first) > 1 else str(*first))
        else:
            return None
    full = all(len(rows) == len(set(rows)) == count for rows in by_layer.values())
    return holes if full else None


def _link(alike: _Alike, holes: Sequence[str], pieces: _Pieces) -> Link:
    in_one_layer = [piece for _, piece in next(iter(pieces.values()))]
    return Link(
        parameter=alike.parameter,
        layers=tuple(sorted(layer for layer in pieces if layer is not None)),
        part=alike.part,
        rows=_rows(in_one_layer[0]),
        source=fill_form(alike.form, holes),
        scales=fill_form(alike.scales, holes) if alike.scales else "",
        dtype=alike.dtype,
        shape=tensors_of(in_one_layer[0].info)[0].shape,
        ops=tuple(str(op) for op in alike.ops if not isinstance(op, Unsqueeze)),
        nbytes=sum(piece.nbytes for piece in in_one_layer),
    )


def _rows(piece: Piece) -> str:
    """Where in the parameter the piece goes; of a stack, where in each item of it."""
    spans = [span for span in piece.target_slice if not _is_stacked(piece) or span.dim > 0]
    return ", ".join(f"{'rows' if s.dim < 2 else f'dim {s.dim}'} {s.start}:{s.stop}" for s in spans)


def _is_stacked(piece: Piece) -> bool:
    return any(isinstance(op, Unsqueeze) for op in piece.ops)


def _start(piece: Piece) -> int:
    """Where a piece begins along the fused dimension."""
    return piece.target_slice[-1].start if piece.target_slice else 0
