"""The model as a tree in a terminal: blocks, weights, shapes, parameters and each rank's share."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from rich import box
from rich.console import Group
from rich.table import Table
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
_FACTS_WIDTH = 46  # letters of a line of facts
_MOST_CELLS = 400  # layers in the strip; more are told in words only
Row = tuple[Text, str, str, str, str, str]  # tree, shape, dtype, parameters, share, rank


def render_tree(view: ModelView) -> Group:
    """The tree for a `rich` console."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    ranks = f"a rank of {view.tp_size}" if view.tp_size > 1 else ""
    table.add_column("block", overflow="fold")
    for header, right in (("shape", 0), ("dtype", 0), ("parameters", 1), ("share", 1), (ranks, 0)):
        if header:
            table.add_column(header, justify="right" if right else "left", overflow="fold")
    rows = list(_rows(view))
    for tree, *facts in rows:
        table.add_row(tree, *facts[: 5 if ranks else 4])
    return Group(*_head(view), table, *_foot(view))


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


def _rows(view: ModelView) -> Iterator[Row]:
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


def _layers(view: ModelView, number: int, section: SectionView, last: bool) -> Iterator[Row]:
    title = f"layers {layers_text(section.layers)}"
    kind = f" {section.kind}" if len(view.kinds) > 1 else ""
    colour = _KINDS[number % len(_KINDS)]
    tree = Text.assemble(_branch("", last), (title, "bold"), (kind, f"bold {colour}"))
    tree.append(f" × {section.count}", "dim")
    count = section.numel * section.count
    yield (tree, "", "", short_count(count), percent(count, view.numel), "")
    below = _below("", last)
    yield from _equations(section, below)
    for n, block in enumerate(section.blocks):
        yield from _block(view, section, block, below, n == len(section.blocks) - 1)


def _equations(section: SectionView, indent: str) -> Iterator[Row]:
    for equation, _ in section.wiring:
        stem = "│ " if section.blocks else "  "
        yield (Text.assemble((f"{indent}{stem}", "dim"), (equation, "green")), "", "", "", "", "")


def _block(
    view: ModelView, section: SectionView, block: BlockView, indent: str, last: bool
) -> Iterator[Row]:
    colour = _COLOURS.get(block.part, "white")
    tree = Text.assemble(_branch(indent, last), (block.name, f"bold {colour}"), f" {block.block}")
    count = block.numel * section.count
    counted = (short_count(count) if count else "", percent(count, view.numel) if count else "")
    below = _below(indent, last)
    if [weight.name for weight in block.weights] == ["weight"]:  # one line tells all
        weight = block.weights[0]
        told = (f"tied to {weight.tied_to}",) if weight.tied_to else block.facts
        tree.append(f"  {', '.join(told)}" if told else "", "dim")
        yield (tree, shape_text(weight.shape), weight.dtype, *counted, rank_text(weight))
        return
    yield (tree, "", "", *counted, "")
    stem = f"{below}{'│ ' if block.weights else '  '}"
    for line in wrap(", ".join(block.facts), _FACTS_WIDTH):
        yield (Text(f"{stem}{line}", "dim"), "", "", "", "", "")
    for n, weight in enumerate(block.weights):
        yield _weight(section, weight, _branch(below, n == len(block.weights) - 1))


def _weight(section: SectionView, weight: WeightView, stem: tuple[str, str]) -> Row:
    name = weight.name.removesuffix(".weight")
    tree = Text.assemble(stem, name)
    if weight.fused:
        tree.append(f"  {' + '.join(part for part, _ in weight.fused)}", "dim")
    if weight.tied_to:
        tree.append(f"  = {weight.tied_to}", "dim")
    count = short_count(weight.numel * section.count) if weight.numel else ""
    return (tree, shape_text(weight.shape), weight.dtype, count, "", rank_text(weight))


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


def _branch(indent: str, last: bool) -> tuple[str, str]:
    return (f"{indent}{'└─ ' if last else '├─ '}", "dim")


def _below(indent: str, last: bool) -> str:
    return f"{indent}{'   ' if last else '│  '}"

