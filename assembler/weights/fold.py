"""Names that differ only in their indices, written as one: `layers.{0-29}.mlp.down.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# The segments of a name; None stands for an index.
Form = tuple[str | None, ...]


@dataclass(frozen=True)
class Fold:
    """A set of names and the one text for all of them."""

    text: str
    names: tuple[str, ...]


def blank_indices(name: str) -> tuple[Form, tuple[int, ...]]:
    """((layers, None, w), (3,)) of `layers.3.w`: path segments that are numbers are indices."""
    indices: list[int] = []
    segments: list[str | None] = list(name.split("."))
    for n, segment in enumerate(segments):
        if segment.isdecimal():
            indices.append(int(segment))
            segments[n] = None
    return tuple(segments), tuple(indices)


def fill_form(form: Form, indices: Iterable[object]) -> str:
    """The name of that form with these indices: undoes `blank_indices`."""
    following = iter(indices)
    return ".".join(str(next(following)) if s is None else s for s in form)


def fold_names(names: Iterable[str]) -> list[Fold]:
    """Fold names into as few texts as their indices allow, in the order of first appearance.

    Each text stands for exactly its names: an index set that is no full product of ranges is
    written as several texts.
    """
    groups: dict[Form, dict[tuple[int, ...], str]] = {}
    for name in names:
        form, indices = blank_indices(name)
        groups.setdefault(form, {})[indices] = name
    return [fold for form, members in groups.items() for fold in _fold_form(form, members)]


def fold_text(names: Iterable[str]) -> str:
    """`fold_names` as one text, its parts separated by commas."""
    return ", ".join(fold.text for fold in fold_names(names))


def format_indices(indices: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def covers_any(text: str, names: Iterable[str]) -> bool:
    """Whether a text, written with folded names, speaks of one of `names`."""
    by_form: dict[Form, list[tuple[int, ...]]] = {}
    for name in names:
        form, indices = blank_indices(name)
        by_form.setdefault(form, []).append(indices)
    for word in text.split():
        ranges: list[set[int]] = []
        form = tuple(_open(segment, ranges) for segment in word.strip(",:;.()'`").split("."))
        for indices in by_form.get(form, ()):
            if all(index in among for index, among in zip(indices, ranges, strict=True)):
                return True
    return False


def _open(segment: str, ranges: list[set[int]]) -> str | None:
    """A segment of a folded name as a form has it; the indices it stands for go to `ranges`."""
    inner = segment[1:-1] if segment.startswith("{") and segment.endswith("}") else segment
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", inner):
        return segment
    runs = (run.split("-") for run in inner.split(","))
    ranges.append({n for run in runs for n in range(int(run[0]), int(run[-1]) + 1)})
    return None


def _fold_form(form: Form, members: dict[tuple[int, ...], str]) -> Iterator[Fold]:
    for box in _boxes(list(members)):
        texts = [str(v[0]) if len(v) == 1 else "{" + format_indices(v) + "}" for v in box]
        yield Fold(fill_form(form, texts), tuple(members[indices] for indices in _product(box)))


def _boxes(rows: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Split a set of index tuples into full products, grouping first indices with equal rests."""
    if not rows or not rows[0]:
        return [()] if rows else []
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in rows:
        rests.setdefault(first, []).append(tuple(rest))
    firsts: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rest in rests.items():
        firsts.setdefault(tuple(sorted(rest)), []).append(first)
    return [(tuple(sorted(group)), *box) for rest, group in firsts.items() for box in _boxes(rest)]


def _product(box: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, ...]]:
    if not box:
        yield ()
        return
    for first in box[0]:
        for rest in _product(box[1:]):
            yield (first, *rest)


def merge_names(names: Sequence[str]) -> str:
    """`self_attn.{q,k,v}_proj` for names that differ in one stretch, else a comma list.

    The common text is cut at `.` or `_`, so that what stands in braces can be read.
    """
    if len(names) == 1:
        return names[0]
    start = _common(names, ("_", "."))
    tails = [name[start:] for name in names]
    end = _common([tail[::-1] for tail in tails], ("_", "."))
    middles = [tail[: len(tail) - end] for tail in tails]
    if (start == 0 and end == 0) or not all(middles):
        return ", ".join(names)
    return names[0][:start] + "{" + ",".join(middles) + "}" + tails[0][len(tails[0]) - end :]


def _common(names: Sequence[str], borders: tuple[str, ...]) -> int:
    """Length of the common beginning, up to and including its last border."""
    shared = 0
    for n, letters in enumerate(zip(*names, strict=False)):
        if len(set(letters)) > 1:
            break
        if letters[0] in borders:
            shared = n + 1
    return shared
