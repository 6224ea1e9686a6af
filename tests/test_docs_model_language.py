"""docs/model-language.md: its tables are generated, its examples run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docs_reference
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import fx

from assembler.errors import SpecError
from assembler.loading import logits
from assembler.model.build import build_model
from assembler.model.compose import load_spec
from assembler.model.config_fields import ConfigFields
from assembler.model.resolvers import bind_config, register_resolvers
from assembler.model.spec import ModelSpec
from assembler.weights.dummy import dummy_load
from assembler.weights.execute import materialize, reset_buffers
from assembler.weights.yaml_marks import parse_marked

PAGE = docs_reference.PAGE.read_text("utf-8")
# (language, text) of every fenced block, in order.
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
CONFIG = {
    "hidden_size": 32,
    "vocab_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "rope_theta": 10000.0,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}


def _titled(title: str, language: str = "yaml") -> list[str]:
    """The blocks whose first line is a comment that begins with `title`."""
    return [text for kind, text in FENCED if kind == language and text.startswith(f"# {title}")]


FILES = {text.split()[1]: text for text in _titled("conf/")}
WRONG = [name for name in FILES if "wrong" in name]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    for name, text in FILES.items():
        Path(name).write_text(text, "utf-8")


def _spec(conf: str, config: Mapping[str, Any] = CONFIG, overrides: tuple[str, ...] = ()) -> Any:
    return load_spec(conf, config, overrides, roots=[Path.cwd()])


def _run(spec: ModelSpec) -> fx.GraphModule:
    """The model, built and run once with random weights."""
    model = build_model(spec)
    materialize(model, "cpu", torch.float32)
    dummy_load(model, 0)
    reset_buffers(model, "cpu")
    with torch.no_grad():
        scores = logits(model, torch.arange(12).view(2, 6))
    assert scores.shape == (2, 6, CONFIG["vocab_size"]) and scores.isfinite().all()
    return model


def test_generated_sections_are_up_to_date() -> None:
    assert docs_reference.with_sections(PAGE) == PAGE, "run: python tests/docs_reference.py"


def test_every_example_is_found() -> None:
    assert set(FILES) >= {"conf/small.yaml", "conf/small_parallel.yaml", *WRONG}
    assert len(WRONG) == 2 and len(_titled("values")) == 2 and len(_titled("changes to")) == 9
    known = ("conf/", "values", "changes to", "yaml-language-server")
    assert sum(len(_titled(title)) for title in known) == len([1 for k, _ in FENCED if k == "yaml"])


@pytest.mark.parametrize("name", [name for name in FILES if name not in WRONG])
def test_confs(name: str) -> None:
    _run(_spec(Path(name).stem))


def test_what_inheritance_says() -> None:
    child = _spec("small_layernorm").kinds["layer"].blocks
    assert child["mlp"].intermediate_size == CONFIG["intermediate_size"]
    assert child["attn_norm"].eps == 1e-5


@pytest.mark.parametrize("text", _titled("values"))
def test_values(text: str) -> None:
    (config,) = (json.loads(block) for language, block in FENCED if language == "json")
    tree = OmegaConf.create(parse_marked(text, "page.yaml").data)
    register_resolvers()
    bind_config(tree, ConfigFields(config))
    for line in text.splitlines()[1:]:
        name, expected = re.fullmatch(r"(\w+): .*\s# (.*)", line).groups()
        assert tree[name] == yaml.safe_load(expected), line


@pytest.mark.parametrize("text", _titled("changes to small"))
def test_changes(text: str) -> None:
    Path("conf/changed.yaml").write_text(f"defaults: [small]\n{text}", "utf-8")
    spec = _spec("changed")
    model = _run(spec)
    if "sliding_attention" in text:
        assert [layer.attn.window for layer in model.layers] == [None, 8, None]
    if "assumes" in text:
        with pytest.raises(SpecError, match="covers only null"):
            _spec("changed", {**CONFIG, "clip_qkv": 8.0})
    if "per_layer" in text:
        assert [layer.attn.window for layer in model.layers] == [None, 8, None]
        assert spec.layer_kinds == ("layer+layer_0", "layer+layer_1", "layer+layer_2")
    if "plain" in text:
        assert spec.layer_kinds == ("gated", "gated", "plain")


EQUATIONS = next(text for language, text in FENCED if not language and text.startswith("x = x"))


@pytest.mark.parametrize("lines", EQUATIONS.strip().split("\n\n"))
def test_usual_layers(lines: str) -> None:
    wiring = json.dumps(lines.splitlines())
    Path("conf/wired.yaml").write_text(f"defaults: [small]\nlayers: {{wiring: {wiring}}}", "utf-8")
    _run(_spec("wired"))


OVERRIDES = _titled("overrides of small", language="")[0].splitlines()[1:]


@pytest.mark.parametrize("line", OVERRIDES)
def test_overrides(line: str) -> None:
    plain = _spec("small")
    spec = _spec("small", overrides=(line,))
    assert spec != plain
    _run(spec)


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    position = next(n for n, (_, text) in enumerate(FENCED) if text == FILES[name])
    expected = FENCED[position + 1][1].strip().splitlines()
    with pytest.raises(SpecError) as caught:
        build_model(_spec(Path(name).stem))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected)
    for line, shown in zip(lines, expected, strict=True):
        assert re.fullmatch(re.escape(shown).replace(re.escape("[...]"), ".*"), line)
