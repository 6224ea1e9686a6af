"""A tensor's story in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from assembler.weights.fold import blank_indices, fold_text
from assembler.weights.ops import Shape
from assembler.weights.report import format_bytes
from assembler.weights.story import Applied, Flow, Into, OnDisk, RankShare, TensorStory

MOST_FLOWS = 6  # told one by one
_LABEL = 10  # width of the first column


def story_lines(story: TensorStory) -> Iterator[str]:
    """The story, a fact a line; tensors that go the same way (experts) are told once."""
    sides = " and ".join(
        {"checkpoint": f"tensor of {story.checkpoint}", "model": "parameter of the model"}[side]
        for side in story.sides
    )
    yield f"{story.name}: {sides} (weight map '{story.weight_map}')"
    told = [one for flow in story.flows for one in (flow.source, flow.scales)]
    if story.on_disk is not None and story.on_disk not in told:
        yield from _disk(story.on_disk)
    before = None
    for flow, alike in _groups(story.flows):
        yield ""
        yield from _origin(flow, before)
        yield from _flow(flow, story.tp_size)
        before = flow
        if alike:
            yield _line("likewise", fold_text(other.source.name for other in alike))
    if story.rule is not None:
        yield _line("rule", _rule(story.rule))
    for line in story.constants:
        yield _line("constant", line)
    for line in story.ties:
        yield _line("tied", line)
    if story.ignored:
        where = f" ({story.ignored_at})" if story.ignored_at else ""
        yield _line("ignored", f"{story.ignored}{where}")
    for finding in story.findings:
        yield _line("finding", str(finding))
    if story.refused:
        yield _line(f"tp={story.tp_size}", f"cannot work: {story.refused}")


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"


def _groups(flows: Sequence[Flow]) -> Iterator[tuple[Flow, list[Flow]]]:
    """(flow, those like it): all alone while they are few, else those that differ in an index."""
    if len(flows) <= MOST_FLOWS:
        yield from ((flow, []) for flow in flows)
        return
    groups: dict[tuple, list[Flow]] = {}
    for flow in flows:
        steps = tuple(step.shape for step in flow.steps)
        key = (blank_indices(flow.source.name)[0], blank_indices(flow.into.parameter)[0])
        groups.setdefault((*key, flow.into.part, flow.source.dtype, steps), []).append(flow)
    yield from ((group[0], group[1:]) for group in groups.values())


def _origin(flow: Flow, before: Flow | None) -> Iterator[str]:
    """Where it comes from, unless the flow before has said so."""
    if before is None or flow.source != before.source:
        yield from _disk(flow.source)
        if flow.scales is not None:
            yield from _disk(flow.scales, "scales")
    if flow.rule is not None and (before is None or flow.rule != before.rule):
        yield _line("rule", _rule(flow.rule))


def _flow(flow: Flow, tp_size: int) -> Iterator[str]:
    for step in flow.steps:
        yield _line("op", f"{step.op} → {_shape(step.shape)}")
    if not flow.steps:
        yield _line("op", "none: it is copied as it is")
    yield _line("fills", _into(flow.into))
    if flow.loss:
        yield _line("export", f"not bit for bit: loses {flow.loss}")
    for number, line in enumerate(_ranks(flow, tp_size)):
        yield _line(f"tp={tp_size}" if number == 0 else "", line)


def _disk(source: OnDisk, label: str = "tensor") -> Iterator[str]:
    size = format_bytes(source.stop - source.start)
    yield _line(label, f"{source.name} {_shape(source.shape)} {source.dtype}, {size}")
    yield _line("file", f"{source.file}, bytes {source.start:,} to {source.stop:,}")


def _rule(rule: Applied) -> str:
    through = f", through `extends` of {', '.join(rule.through)}" if rule.through else ""
    text = f"{rule.text} ({rule.where}{through})"
    return f"{text}; way {rule.way} of `any`" if rule.way else text


def _into(into: Into) -> str:
    rows = " and ".join(_range(span, len(into.shape)) for span in into.rows)
    text = f"{rows} of {into.parameter}" if rows else f"all of {into.parameter}"
    text += f" {_shape(into.shape)}"
    if into.part:
        text += f", its part '{into.part}'"
    kept = f"kept in {into.dtype}" if into.dtype else "in the type that the model is loaded in"
    return f"{text}; {kept}"


def _range(span: tuple[int, int, int], dims: int) -> str:
    dim, start, stop = span
    noun = ("rows", "columns")[dim] if dim < 2 and dims < 3 else f"dim {dim}"
    return f"{noun} {start}:{stop}"


def _ranks(flow: Flow, tp_size: int) -> Iterator[str]:
    """What the ranks take, those with the same as one line."""
    if tp_size == 1 or not flow.ranks:
        return
    if not flow.into.split:
        yield f"replicated: each of the {tp_size} ranks holds all of it"
        return
    dims = len(flow.into.shape)
    for _, group in groupby(flow.ranks, key=lambda share: replace(share, rank=0)):
        ranks = [share.rank for share in group]
        share = flow.ranks[ranks[0]]
        copies = f" (replicated {len(ranks)} times)" if len(ranks) > 1 and share.nbytes else ""
        numbers = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
        yield f"{numbers}: {_share(share, flow.into, dims)}{copies}"


def _share(share: RankShare, into: Into, dims: int) -> str:
    if not share.nbytes:
        return "nothing"
    what = "all of it" if share.taken is None else _range(share.taken, dims)
    if share.taken is not None and into.part:
        what += f" of '{into.part}'"
    place = " and ".join(_range(span, dims) for span in share.rows)
    into_text = f", into {place} of its own parameter" if place else ""
    return f"{what} ({_shape(share.shape)}, {format_bytes(share.nbytes)}){into_text}"


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "1"
