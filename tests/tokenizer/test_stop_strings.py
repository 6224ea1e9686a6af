"""`StopStrings`: the cut does not depend on how the text arrives."""

from __future__ import annotations

import random

import pytest

from assembler.errors import OptionError
from assembler.tokenizer import StopStrings


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """All that goes out for `pieces`, and whether a stop was met."""
    watcher = StopStrings(stops)
    out = [watcher.push(piece)[0] for piece in pieces]
    return "".join(out) + watcher.finish(), watcher.stopped


def reference(stops: list[str], text: str) -> tuple[str, bool]:
    """Read character by character; end at the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_a_stop_string_across_pieces_never_gets_out() -> None:
    watcher = StopStrings(["\nUser:"])
    assert watcher.push("Paris.") == ("Paris.", False)
    assert watcher.push("\nUs") == ("", False)
    assert watcher.push("er: and") == ("", True)
    assert watcher.push("more") == ("", True)
    assert watcher.finish() == ""


def test_text_held_back_in_vain_goes_out() -> None:
    watcher = StopStrings(["\nUser:"])
    assert watcher.push("a\nUse") == ("a", False)
    assert watcher.push("d\nU") == ("\nUsed", False)
    assert watcher.finish() == "\nU"
    assert not watcher.stopped


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["abcd", "bc"], "xabcd", "xa"),  # the one complete first
        (["bc", "abc"], "xabc", "x"),  # complete together: the longest
        (["aab"], "aaab", "a"),  # a false start inside the match
        (["b", "bc"], "abc", "a"),
        ([], "abc", "abc"),
    ],
)
def test_which_stop_string_counts(stops: list[str], text: str, expected: str) -> None:
    assert feed(stops, [text])[0] == expected
    assert feed(stops, list(text))[0] == expected


def test_any_cut_of_any_text_gives_the_same() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        pieces = ["".join(rng.choices("abc", k=rng.randint(0, 3))) for _ in range(5)]
        assert feed(stops, pieces) == reference(stops, "".join(pieces)), (stops, pieces)


@pytest.mark.parametrize("stops", ["end", ["a", ""], [1]])
def test_what_is_not_a_list_of_strings_is_refused(stops: object) -> None:
    with pytest.raises(OptionError, match="list of non-empty strings"):
        StopStrings(stops)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_the_stop_string_may_be_included(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=40))
    stops = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(3)]
    before, stopped = reference(stops, text)
    watcher = StopStrings(stops, include=True)
    given = "".join(watcher.push(char)[0] for char in text) + watcher.finish()
    assert watcher.stopped == stopped
    if stopped:
        assert watcher.matched in stops and given == before + watcher.matched
        assert text.startswith(given)
    else:
        assert watcher.matched is None and given == text


@pytest.mark.parametrize("seed", range(30))
def test_stops_completed_too_early_are_text(seed: int) -> None:
    """Those that end in the first 15 characters do not count, however the text arrives."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=60))
    stops = ["".join(rng.choices("ab", k=rng.randint(3, 7))) for _ in range(3)]
    watcher, given = StopStrings(stops), ""
    for position, char in enumerate(text):
        given += watcher.push(char, may_stop=position >= 15)[0]
    given += watcher.finish()
    ends = [
        (end, end - len(stop))
        for end in range(16, len(text) + 1)
        for stop in stops
        if text[:end].endswith(stop)
    ]
    assert given == (text[: min(ends)[1]] if ends else text)
