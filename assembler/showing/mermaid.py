"""The diagram as Mermaid text, which GitHub, GitLab and many editors draw inside Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from assembler.showing.cards import blocks_by_name
from assembler.showing.colours import LIGHT
from assembler.showing.diagram import Node
from assembler.showing.names import layers_text
from assembler.showing.numbers import short_count
from assembler.showing.view import BlockView, ModelView, SectionView


def mermaid_text(view: ModelView) -> str:
    """A flowchart: the model, and each kind of layer as a subgraph of it.

    What leaves the embedding enters every kind; which layers are of which kind is their title.
    """
    return "\n".join(["flowchart TD", *_lines(view)]) + "\n"


def _lines(view: ModelView) -> Iterator[str]:
    for number, section in enumerate(view.kinds):
        title = f"layers {layers_text(section.layers)}, × {section.count}"
        if len(view.kinds) > 1:
            title = f"{section.kind}: {title}"
        yield f'  subgraph k{number}["{_quoted(title)}"]'
        yield from (f"  {line}" for line in _section(section, f"k{number}"))
        yield "  end"
    yield from _section(view.model, "m", range(len(view.kinds)))
    used = {block.part for section in view.sections for block in section.blocks}
    for part in sorted(used):
        fill, mark = LIGHT.fills[part], LIGHT.marks[part]
        yield f"  classDef {part} fill:{fill},stroke:{mark},color:{LIGHT.text}"


def _section(section: SectionView, prefix: str, kinds: range = range(0)) -> Iterator[str]:
    """The nodes and edges of a section; the model's layers are the subgraphs of `kinds`."""
    blocks = blocks_by_name(section.blocks)
    ids = {node.name: f"{prefix}_{n}" for n, node in enumerate(section.diagram.nodes)}
    layers = {node.name for node in section.diagram.nodes if node.kind == "layers"}
    for node in section.diagram.nodes:
        if node.name not in layers:
            yield f"  {ids[node.name]}{_node(node, blocks.get(node.label))}"
    for edge in section.diagram.edges:
        if edge.target in layers:
            yield from (f"  {ids[edge.source]} --> k{n}" for n in kinds)
        elif edge.source in layers:
            yield from (f"  k{n} --> {ids[edge.target]}" for n in kinds)
        else:
            yield f"  {ids[edge.source]} --> {ids[edge.target]}"


def _node(node: Node, block: BlockView | None) -> str:
    if node.kind == "block":
        assert block is not None
        facts = [block.block, *block.facts, short_count(block.numel) if block.numel else ""]
        label = f"<b>{_quoted(node.label)}</b><br/>{_quoted(' · '.join(filter(None, facts)))}"
        return f'["{label}"]:::{block.part}'
    if node.kind == "operator":
        return f'(("{_quoted(node.label)}"))'
    return f'(["{_quoted(node.label)}"])'


def _quoted(text: str) -> str:
    """Text for a quoted label: what has a meaning there becomes an entity."""
    for letter, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(letter, entity)
    return text
