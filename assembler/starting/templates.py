"""The texts of a new architecture's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def conf_yaml(name: str, parent: str, data: Mapping[str, Any]) -> str:
    """A conf that changes nothing of its parent, and shows what there is to change."""
    return f"""\
# {name}: begins as {parent}. What is written here is laid over it; the rest is inherited.
# Blocks and their fields: docs/model-language.md of the assembler, or your editor's completion.
defaults: [{parent}, _self_]
weight_map: {name}
# Once config.json files name a type of their own, they are recognised by it:
# matches: {{architectures: [{_camel(name)}ForCausalLM], model_type: {name}}}
#
# What {parent} has, to take from:
{_commented(_shown(data))}
"""


def map_yaml(name: str, parent: str, parent_map: str) -> str:
    """A weight map that changes nothing of its parent's."""
    return f"""\
# Where {name}'s modules find their tensors: as {parent}'s, but for what is written here.
# Rules: docs/weight-maps.md of the assembler. To begin with a rule, take the braces away:
extends: {parent_map}
weights: {{}}
# weights:
#   layers.{{i}}:
#     attn_norm: a_name_in_the_layer          # the names on disk, below the layer's own
#     mlp.gate_up: [mlp.first, mlp.second]    # a list merges, in this order
"""


def test_file(name: str) -> str:
    """A parity test of the folder's own architecture."""
    return f'''\
"""{name} computes what its reference does: a tiny random model, every logit compared."""

from pathlib import Path

import assembler
from assembler.verifying.report_text import report_lines

FOLDER = Path(__file__).resolve().parent.parent
TOLERANCE = 3e-5  # at logits of standard deviation 1


def test_logits_equal_the_reference():
    """The reference is what transformers makes of config.json: its own model of that type, or the
    modeling file beside it that `auto_map` names.
    """
    report = assembler.verify_model(
        "tiny",
        FOLDER / "conf" / "{name}.yaml",
        config=FOLDER / "config.json",
        search_path=[FOLDER],
        tolerance=TOLERANCE,
        trust_remote_code=True,  # the folder's own
    )
    assert report.passed, "\\n".join(report_lines(report, TOLERANCE))
'''


def readme(name: str, parent: str) -> str:
    """What is in the folder and what to do with it."""
    with_weights = f"conf={name} checkpoint=path/to/model"
    sizes = f"conf={name} checkpoint=config.json"
    return f"""\
# {name}

An architecture for the model assembler, begun as `{parent}`.

| file | what it says |
| --- | --- |
| `conf/{name}.yaml` | what the model *is*: blocks, fields, equations |
| `weight_maps/{name}.yaml` | how the tensors of its checkpoints fill it |
| `config.json` | the sizes; yours, once you have it, with `auto_map` if it has a modeling file |
| `tests/test_{name}.py` | that it computes what its reference does |

In this folder, with the assembler, its extra `verify` and pytest installed:

```sh
python -m pytest                                                # are the logits the reference's?
python -m assembler.verify conf={name} checkpoint=tiny config=.    # if not: which block, and why
python -m assembler.show {sizes}        # what it is made of
python -m assembler.diff conf={name} other={parent}                # what you have changed
python -m assembler.memory {sizes} gpu=24GiB
python -m assembler.bench {sizes} load=dummy conf.layers.count=2
```

and with weights:

```sh
python -m assembler.coverage {with_weights}  # does every tensor have its place?
python -m assembler.generate {with_weights} prompt="Hello"
```

As generated the test passes, because {name} still is {parent}. Change the conf, and it fails until
config.json (and the modeling file it names) is that of the model you mean.
"""


def _shown(data: Mapping[str, Any]) -> Iterator[str]:
    """The blocks and equations of a conf, in outline."""
    apart = ("layers", "variants", "wiring", "matches", "checkpoint", "weight_map")
    for key, value in data.items():
        if key not in apart and isinstance(value, Mapping) and "block" in value:
            yield f"{key}: {{block: {value['block']}}}"
    layers = data.get("layers") or {}
    yield "layers:"
    yield "  blocks:"
    for key, value in (layers.get("blocks") or {}).items():
        if isinstance(value, Mapping) and "block" in value:
            fields = ", ".join(field for field in value if field != "block")
            yield f"    {key}: {{block: {value['block']}}}" + (f"  # {fields}" if fields else "")
    yield "  wiring:"
    yield from (f"    - {line}" for line in layers.get("wiring") or ())
    yield "wiring:"
    yield from (f"  - {line}" for line in data.get("wiring") or ())


def _commented(lines: Iterator[str]) -> str:
    return "\n".join(f"# {line}" for line in lines)


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
