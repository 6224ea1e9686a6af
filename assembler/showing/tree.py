"""The model as a tree in a terminal: blocks, weights, shapes, parameters and each rank's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.text import Text

from assembler.showing.names import layers_text
from assembler.showing.numbers import percent, shape_text, short_count
from assembler.showing.view import BlockView, ModelView, SectionView, WeightView
from assembler.weights.rank_memory import format_bytes

_COLOURS = {
    "embedding": "bright_blue",
    "attention": "yellow",
    "mlp": "cyan",
    "experts": "magenta",
    "router": "bright_magenta",
    "position": "bright_cyan",
    "head": "bright_blue",
}
_KINDS = ("blue", "yellow", "cyan", "magenta", "green", "red", "bright_blue", "bright_yellow")
_NARROWEST, _WIDEST = 30, 120  # columns for the tree itself
_HANGING = 2  # columns by which the next lines of a row are indented
_GAP = 2  # columns between what stands beside it
_NUMBERS = (2, 3)  # of what stands beside it, those that are numbers
_MOST_CELLS = 400  # layers in the strip; more are told in words only


@dataclass(frozen=True)
class _Row:
    """A line of the tree and what stands beside it."""

    stem: str  # what hangs it into the tree
    below: str  # the stem of what follows it, and of its own next lines
    text: Text
    shape: str = ""
    dtype: str = ""
    count: str = ""
    share: str = ""
    rank: str = ""

    @property
    def indent(self) -> int:
        """Columns before the text."""
        return max(len(self.stem), len(self.below) + _HANGING)

    @property
    def facts(self) -> tuple[str, ...]:
        return (self.shape, self.dtype, self.count, self.share, self.rank)


def render_tree(view: ModelView, width: int) -> Group:
    """The tree for a `rich` console with that many columns."""
    headers = ["shape", "dtype", "parameters", "share"]
    headers += [f"a rank of {view.tp_size}"] if view.tp_size > 1 else []
    rows = list(_rows(view))
    facts = [row.facts[: len(headers)] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *facts, strict=True)]
    taken = sum(widths) + _GAP * len(widths)
    longest = max(row.indent + len(row.text) for row in rows if any(row.facts))
    room = max(_NARROWEST, min(longest, width - taken))
    title = Text(f"{'block':<{room}}{_aligned(headers, widths)}".rstrip(), "bold")
    lines = [title, Text("─" * min(width, room + taken), "dim")]
    for row, beside in zip(rows, facts, strict=True):
        lines += _hung(row, room, _aligned(beside, widths), width)
    return Group(*_head(view), Text(), *lines, Text(), *_foot(view))


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Texts under each other: numbers to the right, the others to the left."""
    gap = " " * _GAP
    pairs = enumerate(zip(texts, widths, strict=True))
    return "".join(f"{gap}{t:>{w}}" if n in _NUMBERS else f"{gap}{t:<{w}}" for n, (t, w) in pairs)


def _hung(row: _Row, room: int, beside: str, width: int) -> list[Text]:
    """A row in as many lines as it needs, each with its stem; without facts it may be wide."""
    has_facts = bool(beside.strip())
    below = row.below + " " * _HANGING
    most = room if has_facts else min(width, _WIDEST)
    parts = row.text.wrap(Console(), max(8, most - row.indent))
    lines = []
    for n, part in enumerate(parts):
        part.rstrip()
        line = Text.assemble((row.stem if n == 0 else below, "dim"), part, no_wrap=True)
        if n == 0 and has_facts:
            line.append(f"{' ' * (room - len(line))}{beside}".rstrip())
        lines.append(line)
    return lines


def _head(view: ModelView) -> Iterator[Text]:
    yield Text.assemble((view.title, "bold"), (f"  conf {view.conf}", "dim"))
    facts = [f"{short_count(view.numel)} parameters"]
    if view.active != view.numel:
        facts.append(f"{short_count(view.active)} of them used by a token")
    facts.append(f"{len(view.layer_kinds)} layers of width {view.hidden_size}")
    if view.checkpoint is not None:
        facts.append(f"{format_bytes(view.checkpoint.nbytes)} on disk")
    yield Text(", ".join(facts))
    if len(view.kinds) > 1:
        yield from _strip(view)


def _strip(view: ModelView) -> Iterator[Text]:
    """A cell for each layer in the colour of its kind, and what the colours mean."""
    names = [section.kind for section in view.kinds]
    if len(view.layer_kinds) <= _MOST_CELLS:
        cells = [("▇", _KINDS[names.index(kind) % len(_KINDS)]) for kind in view.layer_kinds]
        yield Text.assemble(*cells)
    legend = [
        (f"▇ {section.kind} × {section.count}  ", _KINDS[n % len(_KINDS)])
        for n, section in enumerate(view.kinds)
    ]
    yield Text.assemble(*legend)


def _rows(view: ModelView) -> Iterator[_Row]:
    """The model's blocks in the order of its equations, the layers where these call them."""
    yield from _equations(view.model, "")
    blocks = {block.name: block for block in view.model.blocks}
    order = [node for node in view.model.diagram.nodes if node.kind in ("block", "layers")]
    names = list(dict.fromkeys(node.label for node in order))
    for n, name in enumerate(names):
        last = n == len(names) - 1
        if name in blocks:
            yield from _block(view, view.model, blocks[name], "", last)
            continue
        for number, section in enumerate(view.kinds):
            yield from _layers(view, number, section, last and number == len(view.kinds) - 1)


def _layers(view: ModelView, number: int, section: SectionView, last: bool) -> Iterator[_Row]:
    kind = f" {section.kind}" if len(view.kinds) > 1 else ""
    text = Text.assemble(
        (f"layers {layers_text(section.layers)}", "bold"),
        (kind, f"bold {_KINDS[number % len(_KINDS)]}"),
        (f" × {section.count}", "dim"),
    )
    count = section.numel * section.count
    stem, below = _stems("", last)
    share = percent(count, view.numel)
    yield _Row(stem, f"{below}│", text, count=short_count(count), share=share)
    yield from _equations(section, below)
    for n, block in enumerate(section.blocks):
        yield from _block(view, section, block, below, n == len(section.blocks) - 1)


def _equations(section: SectionView, indent: str) -> Iterator[_Row]:
    for equation, _ in section.wiring:
        yield _Row(f"{indent}│ ", f"{indent}│", Text(equation, "green"))


def _block(
    view: ModelView, section: SectionView, block: BlockView, indent: str, last: bool
) -> Iterator[_Row]:
    colour = _COLOURS.get(block.part, "white")
    text = Text.assemble((block.name, f"bold {colour}"), f" {block.block}")
    count = block.numel * section.count
    counted = {"count": short_count(count), "share": percent(count, view.numel)} if count else {}
    stem, below = _stems(indent, last)
    if [weight.name for weight in block.weights] == ["weight"]:  # one line tells all
        weight = block.weights[0]
        told = (f"tied to {weight.tied_to}",) if weight.tied_to else block.facts
        text.append(f"  {', '.join(told)}" if told else "", "dim")
        shape, rank = shape_text(weight.shape), rank_text(weight)
        yield _Row(stem, below, text, shape, weight.dtype, rank=rank, **counted)
        return
    yield _Row(stem, below, text, **counted)
    if block.facts:
        bar = "│" if block.weights else " "
        yield _Row(f"{below}{bar} ", f"{below}{bar}", Text(", ".join(block.facts), "dim"))
    for n, weight in enumerate(block.weights):
        yield _weight(section, weight, *_stems(below, n == len(block.weights) - 1))


def _weight(section: SectionView, weight: WeightView, stem: str, below: str) -> _Row:
    text = Text(weight.name.removesuffix(".weight"))
    if weight.fused:
        text.append(f"  {' + '.join(part for part, _ in weight.fused)}", "dim")
    if weight.tied_to:
        text.append(f"  = {weight.tied_to}", "dim")
    count = short_count(weight.numel * section.count) if weight.numel else ""
    shape, rank = shape_text(weight.shape), rank_text(weight)
    return _Row(stem, below, text, shape, weight.dtype, count, rank=rank)


def rank_text(weight: WeightView) -> str:
    """What a rank holds of a weight: the shape, or from which to which where they differ."""
    shapes = sorted(set(weight.rank_shapes))
    if not shapes:
        return ""
    if shapes == [weight.shape]:
        return "whole"
    each = shape_text(shapes[0])
    if len(shapes) > 1:
        each = f"{each} to {shape_text(shapes[-1])}"
    return f"{each} ({weight.split})"


def _foot(view: ModelView) -> Iterator[Text]:
    if view.refused:
        yield Text(f"tp={view.tp_size} cannot work: {view.refused}", style="bold red")
    elif len(view.rank_numels) > 1:
        each = [short_count(count) for count in view.rank_numels]
        told = f"{each[0]} each" if len(set(each)) == 1 else ", ".join(each)
        yield Text(f"parameters of the {view.tp_size} ranks: {told}", style="dim")
    parts = [f"{part} {percent(size, view.numel)}" for part, size in view.by_part.items()]
    yield Text(f"parts: {', '.join(parts)}", style="dim")
    if view.checkpoint is None:
        yield Text("no tensors on disk: the config alone was read", style="dim")
        return
    good = view.checkpoint.complete
    yield from (Text(finding, style="red") for finding in view.checkpoint.findings)
    yield Text(view.checkpoint.covered, style="bold green" if good else "bold red")


def _stems(indent: str, last: bool) -> tuple[str, str]:
    """What hangs a row into the tree, and what stands before all that is below it."""
    return (f"{indent}└─ ", f"{indent}   ") if last else (f"{indent}├─ ", f"{indent}│  ")
