"""The parts of the page around the diagram: head, layers, memory, tensors, checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from assembler.showing.colours import LIGHT
from assembler.showing.names import layers_text
from assembler.showing.numbers import percent, short_count
from assembler.showing.view import ModelView
from assembler.weights.rank_memory import format_bytes

_MOST_CELLS = 600  # layers that get a cell each; of more, only the kinds are shown
_BF16 = 2  # bytes of a value


def header(view: ModelView) -> str:
    """The name and the numbers that one asks for first."""
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _facts(view))
    return f"""\
<header>
<div class="title"><h1>{escape(view.title)}</h1><p>conf <code>{escape(view.conf)}</code></p></div>
<button id="theme" type="button" aria-label="Switch between light and dark" hidden>◐</button>
<dl class="tiles">{tiles}</dl>
</header>"""


def _facts(view: ModelView) -> Iterator[tuple[str, str]]:
    yield "parameters", short_count(view.numel)
    if view.active != view.numel:
        yield "used by a token", short_count(view.active)
    yield "layers", str(len(view.layer_kinds))
    yield "width", f"{view.hidden_size:,}"
    yield "vocabulary", f"{view.vocab_size:,}"
    if view.max_length is not None:
        yield "context", f"{view.max_length:,}"
    if view.checkpoint is not None:
        yield "on disk", format_bytes(view.checkpoint.nbytes)
    cache = view.cache_values * _BF16
    of_rank = " and rank" if len(view.rank_numels) > 1 else ""
    yield f"KV a token{of_rank}, 16 bit", format_bytes(cache)


def layers_section(view: ModelView) -> str:
    """The strip: a cell for each layer in the colour of its kind."""
    names = [section.kind for section in view.kinds]
    numbers = [names.index(kind) for kind in view.layer_kinds]
    cells = "".join(
        f'<button type="button" class="cell kind-{number % len(LIGHT.kinds)}" data-layer="{n}" '
        f'title="layer {n}: {escape(names[number])}" '
        f'aria-label="Layer {n}, {escape(names[number])}" tabindex="{-1 if n else 0}" '
        'aria-pressed="false"></button>'
        for n, number in enumerate(numbers[:_MOST_CELLS])
    )
    kinds = "".join(
        f'<li><button type="button" class="kind" data-choose="{n}" aria-pressed="false">'
        f'<span class="cell kind-{n % len(LIGHT.kinds)}" aria-hidden="true"></span>'
        f"{escape(str(section.kind))}<small>{layers_text(section.layers)} · "
        f"× {section.count}</small></button></li>"
        for n, section in enumerate(view.kinds)
    )
    shown = "" if len(numbers) <= _MOST_CELLS else f"<p>the first {_MOST_CELLS} layers</p>"
    return f"""\
<section id="layers" aria-labelledby="layers-title">
<h2 id="layers-title">Layers</h2>
<div class="strip" role="group" aria-label="Layers, by kind">{cells}</div>{shown}
<ul class="kinds">{kinds}</ul>
<p class="chosen" id="chosen" aria-live="polite">Names below stand for every layer
<code>{{i}}</code>.</p>
</section>"""


def strip_columns(layers: int, most: int) -> int:
    """How many cells a row of the strip has: rows as even as can be, of at most `most`."""
    rows = -(-min(layers, _MOST_CELLS) // most)
    return -(-min(layers, _MOST_CELLS) // rows)


def memory_section(view: ModelView) -> str:
    """A bar for each part, by bytes on disk if they are known."""
    disk = view.disk_by_part
    sizes = disk or {part: count * _BF16 for part, count in view.by_part.items()}
    whole = sum(sizes.values())
    options = [("disk", "as on disk")] if disk else []
    options += [("4", "32 bit"), ("2", "16 bit (bf16, fp16)"), ("1", "8 bit"), ("0.5", "4 bit")]
    chosen = "disk" if disk else "2"
    choices = "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{text}</option>'
        for value, text in options
    )
    by_size = sorted(sizes.items(), key=lambda item: -item[1])
    rows = "".join(_bar(part, size, whole) for part, size in by_size)
    return f"""\
<section id="memory" aria-labelledby="memory-title">
<h2 id="memory-title">Memory of the weights</h2>
<p><label for="dtype">stored</label> <select id="dtype">{choices}</select>
<strong id="total">{format_bytes(whole)}</strong> <span id="more">{_ranks(view)}</span></p>
<ul class="bars" id="bars">{rows}</ul>
</section>"""


def _bar(part: str, size: float, whole: float) -> str:
    return (
        f'<li class="{part}"><span class="part">{part}</span>'
        f'<svg class="bar" aria-hidden="true"><rect class="bar" width="{100 * size / whole:.2f}%" '
        f'height="100%" rx="3"/></svg><span class="size">{format_bytes(size)}</span>'
        f"<small>{percent(size, whole)}</small></li>"
    )


def _ranks(view: ModelView) -> str:
    if view.refused:
        return f"tp={view.tp_size} cannot work: {escape(view.refused)}"
    if len(view.rank_numels) < 2:
        return ""
    most, least = max(view.rank_numels), min(view.rank_numels)
    each = short_count(most) if most == least else f"{short_count(least)} to {short_count(most)}"
    return f"a rank of {view.tp_size} holds {each} parameters"


def tensors_section(view: ModelView) -> str:
    """The search; what it finds is written by the script."""
    if view.checkpoint is None:
        return ""
    return f"""\
<section id="tensors" aria-labelledby="tensors-title">
<h2 id="tensors-title">Tensors, both ways</h2>
<noscript><p>The search needs a script; the blocks above name every tensor.</p></noscript>
<p class="search" hidden><label for="query">find a tensor on disk or a parameter</label>
<input id="query" type="search" autocomplete="off" spellcheck="false"
placeholder="layers.3. q_proj"></p>
<p class="told" id="count" aria-live="polite">{view.checkpoint.tensors:,} tensors on disk</p>
<ol class="results" id="results"></ol>
</section>"""


def checkpoint_section(view: ModelView) -> str:
    """Where all of this was read, and what is wrong."""
    found = view.checkpoint
    if found is None:
        told = (
            "The config alone was read: of tensors on disk the rules of the weight map tell, "
            "under each weight."
        )
        return f'<section><p class="told">{told}</p></section>'
    findings = "".join(f'<li class="finding">{escape(text)}</li>' for text in found.findings)
    ignored = "".join(
        f"<li>not used ({escape(why)}): <code>{escape(', '.join(names))}</code></li>"
        for names, why in found.ignored
    )
    verdict = "complete" if found.complete else "incomplete"
    return f"""\
<section id="checkpoint" aria-labelledby="checkpoint-title">
<h2 id="checkpoint-title">Checkpoint</h2>
<p>weight map <code>{escape(found.weight_map)}</code></p>
<p class="{verdict}">{escape(found.covered)}</p>
<ul>{findings}{ignored}</ul>
</section>"""
