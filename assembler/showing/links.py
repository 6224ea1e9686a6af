"""Which tensors on disk fill which parameters, folded over the layers: a plan for readers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from assembler.showing.names import LAYER, expand, split_layer
from assembler.weights.fold import Form, blank_indices, fill_form, format_indices
from assembler.weights.ops import Unsqueeze
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


@dataclass
class _Group:
    """Pieces that differ in their indices only."""

    pieces: dict[int | None, list[tuple[Indices, Piece]]]  # by layer


def find_links(plan: LoadPlan) -> dict[str, tuple[Link, ...]]:
    """The links of a plan, by parameter, in the order in which they fill it."""
    groups: dict[tuple, _Group] = {}
    for piece in plan.pieces:
        parameter, layer = split_layer(piece.target)
        values, *pair = tensors_of(piece.info)
        form, indices = blank_indices(values.name)
        scales = blank_indices(pair[0].name)[0] if pair else ()
        key = (parameter, piece.part, form, scales, piece.info.dtype, piece.info.shape, piece.ops)
        group = groups.setdefault(key, _Group({}))
        group.pieces.setdefault(layer, []).append((indices, piece))
    found: dict[str, list[tuple[int, Link]]] = {}
    for key, group in groups.items():
        for link in _links(key[0], key[2], key[3], group):
            first = next(piece for pieces in group.pieces.values() for _, piece in pieces)
            found.setdefault(key[0], []).append((_start(first), link))
    return {
        parameter: tuple(link for _, link in sorted(links, key=lambda item: item[0]))
        for parameter, links in found.items()
    }


def _links(parameter: str, form: Form, scales: Form, group: _Group) -> Iterable[Link]:
    """One link for all layers where the names follow a rule, else one for each layer or tensor."""
    by_layer = {layer: [i for i, _ in pieces] for layer, pieces in group.pieces.items()}
    holes = _holes(by_layer)
    if holes is not None:
        yield _link(parameter, form, scales, holes, group.pieces)
        return
    for layer, pieces in group.pieces.items():
        together = _holes({layer: by_layer[layer]})
        if together is not None:
            yield _link(parameter, form, scales, together, {layer: pieces})
            continue
        for indices, piece in pieces:
            each = [str(n) for n in indices]
            yield _link(parameter, form, scales, each, {layer: [(indices, piece)]})


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


def _link(
    parameter: str,
    form: Form,
    scales: Form,
    holes: Sequence[str],
    pieces: Mapping[int | None, Sequence[tuple[Indices, Piece]]],
) -> Link:
    piece = next(iter(pieces.values()))[0][1]
    return Link(
        parameter=parameter,
        layers=tuple(sorted(layer for layer in pieces if layer is not None)),
        part=piece.part,
        rows=_rows(piece),
        source=fill_form(form, holes),
        scales=fill_form(scales, holes) if scales else "",
        dtype=piece.info.dtype,
        shape=tensors_of(piece.info)[0].shape,
        ops=tuple(str(op) for op in piece.ops if not isinstance(op, Unsqueeze)),
        nbytes=sum(p.nbytes for _, p in next(iter(pieces.values()))),
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
