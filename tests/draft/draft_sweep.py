"""What drafts are worth: each architecture hidden in turn and drafted from the others.

    python tests/draft/draft_sweep.py             # docs/draft.md, from what was measured before
    python tests/draft/draft_sweep.py --measure   # measure all architectures first (minutes)
    python tests/draft/draft_sweep.py --measure glm4 phi   # these alone, the others as they were

A test compares the page with what this writes, another one some measurements with new ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "architectures"))

import torch
from cases import CASES, Case
from tiny_checkpoints import make_checkpoint, reference_logits, token_ids

import assembler
from assembler.drafting.drafting import best_attempt, open_index
from assembler.drafting.texts import draft_texts
from assembler.model.conf_files import PACKAGE_ROOT

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "draft.md"
MEASURED = Path(__file__).resolve().parent / "drafts.json"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
TOLERANCE = 3e-5  # of a logit, at logits of standard deviation 1
NAME = "drafted"


def first_cases() -> dict[str, Case]:
    """The first row of the parity table of each architecture."""
    found: dict[str, Case] = {}
    for case in CASES:
        found.setdefault(case.conf, case)
    return found


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Draft the architecture of `case` without it, and compare with transformers if it loads.

    What builds on the architecture is hidden with it. The files that a user gets are what is
    loaded, not the attempt behind them.
    """
    checkpoint, drafted = folder / "checkpoint", folder / NAME
    reference = make_checkpoint(case, checkpoint)
    index = open_index(checkpoint)
    hidden = {case.conf}
    best = best_attempt(index, NAME, [PACKAGE_ROOT], folder / "attempts", without=hidden)
    for kind, text in zip(
        ("conf", "weight_maps"), draft_texts(best, str(checkpoint), NAME), strict=True
    ):
        (drafted / kind).mkdir(parents=True)
        (drafted / kind / f"{NAME}.yaml").write_text(text)
    found = {
        "from": best.parent.name,
        "covered": best.complete,
        "equal": False,
        "unplaced": len(best.unplaced),
    }
    if best.complete:
        model = assembler.load_model(checkpoint, NAME, search_path=[drafted])
        with torch.no_grad():
            theirs = reference_logits(reference, token_ids())
            ours = assembler.logits(model, token_ids())
        error = float((ours - theirs).abs().max() / max(1.0, theirs.std()))
        found["equal"] = error <= TOLERANCE
    return found


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers and the table of docs/draft.md."""
    rows = sorted(measured.items())
    covered = sum(row["covered"] for _, row in rows)
    equal = sum(row["equal"] for _, row in rows)
    lines = [
        f"**Of {len(rows)} architectures, {covered} ({covered / len(rows):.0%}) are covered "
        f"whole by their first draft, and {equal} ({equal / len(rows):.0%}) already have the "
        "logits of transformers.**",
        "",
        "| hidden | drafted from | covered | logits equal | fields not placed |",
        "| --- | --- | :---: | :---: | ---: |",
    ]
    for name, row in rows:
        marks = ["yes" if row[key] else "" for key in ("covered", "equal")]
        lines.append(f"| `{name}` | `{row['from']}` | {' | '.join(marks)} | {row['unplaced']} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """docs/draft.md with its table made anew from the measurements."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table(json.loads(MEASURED.read_text())) + END + after


def measure_all(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Every architecture, or those of `names`."""
    found = {}
    for name, case in first_cases().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(case, Path(folder))
        print(name, found[name], flush=True)
    return found


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        wanted = set(sys.argv[1:]) - {"--measure"}
        old = json.loads(MEASURED.read_text()) if wanted else {}
        rows = dict(sorted({**old, **measure_all(wanted)}.items()))
        lines = [f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
        MEASURED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.write_text(page(PAGE.read_text()))
