"""What the page's script knows: every link between both sides, as compact as the names allow."""

from __future__ import annotations

from typing import Any

from assembler.showing.view import ModelView, SectionView
from assembler.weights.fold import format_indices


def page_data(view: ModelView) -> dict[str, Any]:
    """JSON-ready; tensors are folded (`{i}`, `{0-255}`), the script unfolds them when asked."""
    return {
        "kinds": [format_indices(section.layers) for section in view.kinds],
        "parameters": [
            {
                "name": weight.parameter,
                "block": block_id(view, section, block.name),
                "layers": format_indices(section.layers),
                "links": [
                    {
                        "part": link.part,
                        "rows": link.rows,
                        "source": link.source,
                        "scales": link.scales,
                        "layers": format_indices(link.layers),
                        "does": ", ".join(link.ops),
                    }
                    for link in weight.links
                ],
                "note": f"shares the memory of {weight.tied_to}" if weight.tied_to else "",
            }
            for section in view.sections
            for block in section.blocks
            for weight in block.weights
        ],
        "ignored": []
        if view.checkpoint is None
        else [{"names": names, "why": why} for names, why in view.checkpoint.ignored],
        "memory": memory_data(view),
    }


def memory_data(view: ModelView) -> dict[str, Any]:
    """Values and bytes by part, and what the cache keeps for a token."""
    return {
        "values": view.by_part,
        "disk": view.disk_by_part,
        "cache": view.cache_values,
        "context": view.max_length,
        "ranks": view.rank_numels if len(view.rank_numels) > 1 else [],
    }


def block_id(view: ModelView, section: SectionView, block: str) -> str:
    """The id of a block's element in the page."""
    place = "m" if section.kind is None else f"k{view.kinds.index(section)}"
    return f"{place}-{block}"
