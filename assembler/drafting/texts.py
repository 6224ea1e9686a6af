"""The two files of a draft as text; comments say what is guessed and what is not placed."""

from __future__ import annotations

import re
from typing import Any

from assembler.drafting.attempt import Attempt
from assembler.drafting.matching import draft_matches
from assembler.drafting.yaml_text import comment, listed, yaml_text


def draft_texts(
    best: Attempt, checkpoint: str, name: str, taken: tuple[str, str] | None = None
) -> tuple[str, str]:
    """The text of the conf and of the map; `taken` is the conf that already matches, and where."""
    config, parent = best.config, best.parent
    matches = draft_matches(config)
    head = [
        *comment(
            f"{name}, drafted from {parent.name}. A draft: what is marked as a guess was concluded "
            "from names and shapes, and only a comparison of logits proves it "
            "(python -m assembler.verify)."
        )
    ]
    if best.unplaced:
        head += comment("Fields of config.json that nothing here reads:")
        head += listed(f"{key}: {_short(config.get(key))}" for key in best.unplaced)
    if best.error:
        head += comment(f"It does not build yet: {plain_error(best)}")
    data: dict[str, Any] = {"defaults": [parent.name, "_self_"]}
    if taken is not None:
        head += comment(
            f"Without `matches`: {taken[1]} is for these checkpoints already, and a second "
            f"one would be refused or hide it. Pass conf={name}, or move it from there to here:"
        )
        head += [f"# {line}" for line in yaml_text({"matches": matches}, {}).splitlines()]
    elif matches:
        data["matches"] = matches
    data |= {"checkpoint": checkpoint, "weight_map": name, **best.sheet.changes}
    conf = "\n".join(head) + "\n" + yaml_text(data, best.sheet.why)
    map_head = comment(f"{name}, drafted from the map {parent.weight_map}.")
    if best.anatomy.unknown:
        map_head += comment("Tensors whose use is not known:")
        map_head += listed(best.anatomy.unknown)
    map_data = best.map.data if best.map else {"extends": parent.weight_map}
    text = "\n".join(map_head) + "\n" + yaml_text(map_data, map_reasons(best))
    return conf, text


def plain_error(best: Attempt) -> str:
    """What is wrong, without the places in the files of the attempt."""
    return "; ".join(re.sub(r"^\S+\.yaml:\d+: ", "", line) for line in best.error.splitlines())


def map_reasons(best: Attempt) -> dict[tuple[str, ...], str]:
    """The comments of the map, by key path."""
    reasons = {}
    for target, why in (best.map.guesses if best.map else {}).items():
        layer, dot, rest = target.partition("layers.{i}.")
        path = ("weights", "layers.{i}", rest) if dot and not layer else ("weights", target)
        reasons[path] = why
    return reasons


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
