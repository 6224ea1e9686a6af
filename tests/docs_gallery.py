"""docs/gallery.md, generated from `conf/`, `weight_maps/` and what the parity rows measured.

    python tests/docs_gallery.py             # the page, from what was measured before
    python tests/docs_gallery.py --measure   # measure all rows first (minutes)

A test compares the page with what this writes, another one the measurements with new ones.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "architectures"))

import torch
import transformers
from cases import CASES, Case

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError
from assembler.model.conf_files import ancestry, conf_names, find_conf
from assembler.model.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gallery.md"
MEASURED = Path(__file__).resolve().parent / "fixtures" / "parity.json"
RANKS = (2, 4)
# Compared with a reference of its own, since transformers does not have it.
OWN_REFERENCE = {"minicpm"}

_HEAD = """# Gallery

Every architecture that ships, each in two YAML files: a [conf](model-language.md) says what the
model is, a [weight map](weight-maps.md) where its tensors come from. Each is compared with Hugging
Face transformers on tiny random models whose every option is alive: dense, paged in
chunks, decoding token by token, split over ranks, and exported back to disk bit for bit.

- *lines*: of both YAMLs together, comments and blank lines aside; what they inherit is not counted.
- *error*: the largest difference of a logit from transformers', in float32, at logits of standard
  deviation 1, over all rows of the architecture in the parity table. Two correct implementations
  differ by some 1e-5; the smallest wrong scalar makes it ten times more than the 3e-5 allowed.
- *ranks*: tensor-parallel sizes of the tiny models (4 heads) that are compared with one process.

To add one: [Add an architecture](add-an-architecture.md).
"""


@dataclass(frozen=True)
class Entry:
    """One line of the page."""

    name: str
    title: str
    extends: str
    blocks: str
    wiring: str
    lines: int
    error: str
    ranks: str

    def row(self) -> str:
        cells = (f"`{self.name}`", self.title, self.extends, self.blocks, f"`{self.wiring}`")
        return f"| {' | '.join((*cells, str(self.lines), self.error, self.ranks))} |"


def page() -> str:
    """The whole text of docs/gallery.md."""
    shipped = [name for name in conf_names([ROOT]) if _is_architecture(name)]
    measured = json.loads(MEASURED.read_text())
    entries = [_entry(name, measured) for name in shipped]
    lengths = sorted(entry.lines for entry in entries)
    median = lengths[len(lengths) // 2]
    rows = [
        f"{len(entries)} architectures; half of them take at most {median} lines of YAML.",
        "",
        "| conf | model | extends | blocks | a layer | lines | error | ranks |",
        "| --- | --- | --- | --- | --- | ---: | --- | --- |",
        *(entry.row() for entry in entries),
    ]
    return "\n".join([_HEAD, *rows, ""])


def _is_architecture(name: str) -> bool:
    """Whether the conf says what checkpoints it is for; others are checkpoints of another's."""
    return "matches" in find_conf(name, [ROOT]).marked.data


def _entry(name: str, measured: Mapping[str, float]) -> Entry:
    conf = find_conf(name, [ROOT])
    cases = [case for case in CASES if case.conf == name]
    parents = [file.name for file in ancestry(conf, [ROOT])[1:] if not file.name.startswith("_")]
    specs = [assembler.load_spec(name, tiny_config(case)) for case in cases]
    errors = [measured[case.name] for case in cases if case.name in measured]
    return Entry(
        name=name,
        title=_title(conf.path),
        extends=", ".join(f"`{parent}`" for parent in parents[:1]),
        blocks=_blocks(specs),
        wiring=_wiring(specs[0]) if specs else "",
        lines=_lines(conf.path) + _lines(ROOT / "weight_maps" / f"{name}.yaml"),
        error=f"{max(errors):.0e}" if errors else "own reference" * (name in OWN_REFERENCE),
        ranks=", ".join(str(size) for size in RANKS if _splits(cases, size)),
    )


def tiny_config(case: Case) -> dict:
    """What config.json says of the tiny model of a row."""
    return getattr(transformers, case.config_class)(**case.knobs).to_dict()


def _splits(cases: list[Case], size: int) -> bool:
    """Whether any of the tiny models can be split over so many ranks."""
    for case in cases:
        spec = assembler.load_spec(case.conf, tiny_config(case))
        try:
            assembler.build_model(spec, TensorParallel(0, size))
        except SpecError:
            continue
        return True
    return False


def _title(path: Path) -> str:
    """The first sentence of the comment that a conf begins with, without its sources."""
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(line for line in comments if not line.startswith("yaml-language-server"))
    return re.sub(r"\s*\([^()]*\d{4}[^()]*\)", "", text).split(":")[0].split(". ")[0].rstrip(".")


def _blocks(specs: Sequence[ModelSpec]) -> str:
    """The blocks of its layers in any of its rows, each once."""
    kinds = (kind for spec in specs for kind in spec.kinds.values())
    found = (block.block for kind in kinds for block in kind.blocks.values())
    return ", ".join(dict.fromkeys(found))


def _wiring(spec: ModelSpec) -> str:
    """The equations of the commonest kind of layer in one line."""
    kind = max(spec.kinds, key=spec.layer_kinds.count)
    return "; ".join(spec.kinds[kind].wiring)


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    lines = (line.strip() for line in path.read_text().splitlines())
    return sum(1 for line in lines if line and not line.startswith("#"))


@torch.no_grad()
def measure() -> dict[str, float]:
    """The largest error of every row, rounded up to one digit."""
    from tiny_checkpoints import make_checkpoint, reference_logits, token_ids

    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            reference = make_checkpoint(case, Path(folder))
            ours = assembler.logits(assembler.load_model(folder), token_ids())
            theirs = reference_logits(reference, token_ids())
        found[case.name] = rounded_up(float((ours - theirs).abs().max() / max(1.0, theirs.std())))
    return found


def rounded_up(value: float) -> float:
    """`value` with one digit that counts, never less: 1.31e-6 -> 2e-6."""
    if value == 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / unit) * unit:.0e}")


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        MEASURED.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(page())
