"""The middle of the page: the diagram, and beside it every block with its weights and sources."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from assembler.showing.colours import LIGHT
from assembler.showing.figure import inline_svg
from assembler.showing.links import Link
from assembler.showing.names import layers_text
from assembler.showing.numbers import percent, shape_text, short_count
from assembler.showing.page_data import block_id
from assembler.showing.tree import rank_text
from assembler.showing.view import BlockView, ModelView, SectionView, WeightView
from assembler.weights.fold import format_indices

LEGEND = (
    ("embedding", "embedding"),
    ("norm", "norm"),
    ("attention", "attention"),
    ("mlp", "MLP"),
    ("experts", "mixture of experts"),
    ("position", "positions"),
    ("head", "head"),
    ("other", "other"),
)


def explorer(view: ModelView) -> str:
    """Both columns."""
    return f"""\
<section id="blocks" class="explorer" aria-label="Blocks">
<div class="figures">{"".join(_figures(view))}{_legend(view)}</div>
<div class="lists">
{"".join(_section(view, section) for section in view.kinds)}
{_section(view, view.model)}
</div>
</section>"""


def _figures(view: ModelView) -> Iterator[str]:
    for number, section in enumerate(view.kinds):

        def target(kind: str | None, block: str, section: SectionView = section) -> str:
            return block_id(view, view.model if kind is None else section, block)

        caption = f"<figcaption>layers of kind {escape(str(section.kind))}</figcaption>"
        yield (
            f'<figure data-kind="{number}">{inline_svg(view, number, target)}'
            f"{caption if len(view.kinds) > 1 else ''}</figure>"
        )


def _legend(view: ModelView) -> str:
    used = {block.part for section in view.sections for block in section.blocks}
    items = [
        f'<li class="{part}"><svg width="12" height="12" aria-hidden="true"><rect class="bar" '
        f'width="12" height="12" rx="3"/></svg>{name}</li>'
        for part, name in LEGEND
        if part in used
    ]
    return f'<ul class="legend" aria-label="Colours">{"".join(items)}</ul>'


def _section(view: ModelView, section: SectionView) -> str:
    if section.kind is None:
        head, attribute = "Around the layers", ""
        told = f"{short_count(section.numel)} parameters"
    else:
        number = view.kinds.index(section)
        square = f'<span class="cell kind-{number % len(LIGHT.kinds)}" aria-hidden="true"></span>'
        name = "Every layer" if len(view.kinds) == 1 else escape(section.kind)
        head, attribute = f"{square}{name}", f' data-kind="{number}"'
        layers = f"layers {layers_text(section.layers)}, {section.count} ×"
        told = f"{layers} {short_count(section.numel)} parameters"
    wiring = "".join(
        f'<li><code>{escape(equation)}</code><span class="where">{escape(where)}</span></li>'
        for equation, where in section.wiring
    )
    blocks = "".join(_block(view, section, block) for block in section.blocks)
    return (
        f'<section class="blocks"{attribute}><h2>{head}</h2><p class="told">{told}</p>'
        f'<ol class="wiring" aria-label="Equations">{wiring}</ol>{blocks}</section>\n'
    )


def _block(view: ModelView, section: SectionView, block: BlockView) -> str:
    share = percent(block.numel * section.count, view.numel) if block.numel else ""
    count = f"{short_count(block.numel)}" if block.numel else ""
    facts = [block.block, *block.facts]
    fields = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in block.fields
    )
    weights = "".join(_weight(weight, section.layers) for weight in block.weights)
    return f"""\
<details class="block {block.part}" id="{block_id(view, section, block.name)}">
<summary><span class="swatch"></span><span class="name">{escape(block.name)}</span>
<span class="facts">{escape(" · ".join(facts))}</span>
<span class="count">{count}<small>{share}</small></span></summary>
<div class="inside"><p>{escape(block.summary)}</p>
<dl class="fields">{fields}</dl><p class="where">{escape(block.where)}</p>
<ul class="weights">{weights or "<li>no parameters of its own</li>"}</ul></div>
</details>
"""


def _weight(weight: WeightView, layers: tuple[int, ...]) -> str:
    tags = [weight.dtype, *([f"split by {weight.split}"] if weight.split else [])]
    marks = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags if tag)
    count = short_count(weight.numel) if weight.numel else "no memory of its own"
    sizes = dict.fromkeys((shape_text(weight.shape), count))  # of a vector, one number
    notes = list(weight.notes)
    if weight.tied_to:
        notes.insert(0, f"shares the memory of {weight.tied_to}")
    if weight.rank_shapes:
        held = rank_text(weight)
        told = "all of it" if held == "whole" else held
        notes.append(f"each of {len(weight.rank_shapes)} ranks holds {told}")
    sources = "".join(_source(link, layers) for link in weight.links)
    return (
        f'<li class="weight"><p class="head"><code>{escape(weight.name)}</code>'
        f"{''.join(f'<span>{size}</span>' for size in sizes)}{marks}</p>"
        f"{_parts(weight)}"
        f'<ul class="sources">{sources}</ul>'
        f"{_rule(weight)}"
        f"{''.join(f'<p class=note>{escape(note)}</p>' for note in notes)}</li>"
    )


def _rule(weight: WeightView) -> str:
    """Where the rule stands; where no tensors are known, what it says as well."""
    if not weight.rule:
        return ""
    told = f"rule {weight.rule_at}" if weight.links else f"{weight.rule} ({weight.rule_at})"
    return f'<p class="where">{escape(told)}</p>'


def _parts(weight: WeightView) -> str:
    """A fused dimension as a bar of its parts."""
    whole = sum(rows for _, rows in weight.fused)
    cells, at = [], 0.0
    for n, (name, rows) in enumerate(weight.fused):
        width = 100 * rows / whole
        text = f'<text x="{at + width / 2:.2f}%" y="12" text-anchor="middle">{escape(name)}</text>'
        cells.append(
            f'<rect class="part-{n % 2}" x="{at:.2f}%" width="{width:.2f}%" height="16"/>{text}'
        )
        at += width
    if not cells:
        return ""
    told = ", ".join(f"{name}: {rows} rows" for name, rows in weight.fused)
    return f'<svg class="parts" role="img" aria-label="{escape(told)}">{"".join(cells)}</svg>'


def _source(link: Link, layers: tuple[int, ...]) -> str:
    """A link of a weight that is in `layers`; in which of them it holds is told if not in all."""
    part = f'<span class="tag">{escape(link.part)}</span>' if link.part else ""
    names = "".join(
        f'<a href="#tensors" class="tensor"><code data-name="{escape(name)}">{_breakable(name)}'
        "</code></a>"
        for name in filter(None, (link.source, link.scales))
    )
    held = f"layers {layers_text(link.layers)}" if link.layers != layers else ""
    facts = [shape_text(link.shape), link.dtype, held, *link.ops]
    told = " · ".join(filter(None, facts)) + (f" → {link.rows}" if link.rows else "")
    return (
        f'<li data-layers="{format_indices(link.layers)}">{part}{names}'
        f"<small>{escape(told)}</small></li>"
    )


def _breakable(name: str) -> str:
    """A name that may break after its dots, on narrow screens."""
    return escape(name).replace(".", ".<wbr>")
