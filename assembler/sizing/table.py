"""Draws the memory of a model in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from assembler.sizing.byte_sizes import format_gib
from assembler.sizing.memory_use import MemoryUse, SizeUse


def render_memory(use: MemoryUse) -> Group:
    """A title, a row a size, what cannot be, and what the numbers mean."""
    device = use.device
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headers = ("tp", "weights", "KV a token", "step", "KV tokens", "longest context")
    for header in (*headers, f"batch at {use.context:,}"):
        table.add_column(header, justify="right", no_wrap=True)
    for size in use.sizes:
        table.add_row(*_cells(size), style=None if size.fits else "red")
    title = (
        f"{use.title}: {use.parameters:,} parameters in {use.dtype}, of each rank on a device of"
    )
    parts: list[Text | Table] = [Text(f"{title} {format_gib(device.nbytes)}", style="bold"), table]
    for size in use.sizes:
        parts += [Text(line, style="red") for line in _troubles(size, use)]
        if size.weights > 1.02 * size.lightest:
            spread = f"{format_gib(size.lightest)} to {format_gib(size.weights)}"
            parts.append(Text(f"tp={size.tp_size}: ranks hold {spread} of weights", style="yellow"))
    parts.append(
        Text(
            f"step: activations and logits of {device.max_num_batched_tokens:,} tokens and "
            f"{device.max_num_seqs:,} sequences. KV tokens: pages of {device.page_size} in what is "
            f"left of {device.utilization:g} of the memory.",
            style="dim",
        )
    )
    return Group(*parts)


def _cells(size: SizeUse) -> list[str]:
    if size.refused:
        return [str(size.tp_size), *["–"] * 6]
    return [
        str(size.tp_size),
        format_gib(size.weights),
        format_gib(size.kv_per_token),
        format_gib(size.step),
        f"{size.kv_tokens:,}",
        f"{size.longest_context:,}",
        f"{size.max_batch:,}",
    ]


def _troubles(size: SizeUse, use: MemoryUse) -> list[str]:
    if size.refused:
        return [f"tp={size.tp_size} cannot work: {size.refused}"]
    share = use.device.share
    if size.weights + size.step >= share:
        needs = f"weights and a step take {format_gib(size.weights + size.step)}"
        return [f"tp={size.tp_size} does not fit: {needs}, {format_gib(share)} may be used"]
    if not size.fits:
        return [f"tp={size.tp_size} does not fit: nothing is left for one page of KV cache"]
    return []
