"""The JSON Schemas that editors read: up to date, true of the shipped files, strict about typos."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from assembler.errors import OptionError
from assembler.schema import as_text, main, schemas
from assembler.weights.yaml_marks import load_marked, parse_marked

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ROOT / "docs" / "schema"
FILES = {"model": "conf/*.yaml", "weight_map": "weight_maps/**/*.yaml"}
SCHEMAS = schemas()
SHIPPED = [
    pytest.param(name, path, id=str(path.relative_to(ROOT)))
    for name, pattern in FILES.items()
    for path in sorted(ROOT.glob(pattern))
]


def _errors(name: str, text_or_path: str | Path) -> list[str]:
    if isinstance(text_or_path, Path):
        data = load_marked(text_or_path).data
    else:
        data = parse_marked(text_or_path, "x.yaml").data
    found = Draft202012Validator(SCHEMAS[name]).iter_errors(data)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_written_schema_is_up_to_date(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    written = (WRITTEN / f"{name}.schema.json").read_text("utf-8")
    assert written == as_text(SCHEMAS[name]), "run: python -m assembler.schema"


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"out={tmp_path / 'a' / 'b'}"]) == 0
    paths = [tmp_path / "a" / "b" / f"{name}.schema.json" for name in SCHEMAS]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    assert [json.loads(path.read_text("utf-8")) for path in paths] == list(SCHEMAS.values())
    with pytest.raises(OptionError, match="cannot be written"):
        main([f"out={paths[0]}"])
    with pytest.raises(OptionError, match="the schemas are those of the language"):
        main(["conf.layers.count=2"])


@pytest.mark.parametrize(("name", "path"), SHIPPED)
def test_shipped_files_are_valid(name: str, path: Path) -> None:
    assert _errors(name, path) == []


@pytest.mark.parametrize(("name", "path"), SHIPPED)
def test_shipped_files_name_their_schema(name: str, path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    target = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert target is not None
    assert (path.parent / target[1]).resolve() == WRITTEN / f"{name}.schema.json"


def _fields(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys whose names the schema knows, not chosen by the file."""
    chosen = {(), ("assumes",), ("layers", "blocks"), ("layers", "variants")}
    for key, value in data.items() if isinstance(data, dict) else ():
        below_variant = path[:2] == ("layers", "variants") and path[3:] == ("blocks",)
        if path not in chosen and not below_variant:
            yield (*path, key)
        yield from _fields(value, (*path, key))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "qwen3"])
def test_a_typo_in_any_field_of_a_conf_is_rejected(name: str) -> None:
    data = load_marked(ROOT / "conf" / f"{name}.yaml").data
    validator = Draft202012Validator(SCHEMAS["model"])
    paths = list(_fields(data))
    assert len(paths) > 5
    for path in paths:
        wrong = copy.deepcopy(data)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[f"{path[-1]}x"] = place.pop(path[-1])
        assert not validator.is_valid(wrong), path


@pytest.mark.parametrize(
    "text",
    [
        "defaults: [llama, _self_]",
        "embed: {scale: '${calc:''sqrt(hidden_size)''}'}",
        "embed: {block: Embedding, scale: 2}",
        "norm: null",
        "layers: {blocks: {mlp: {activation: relu, bias: true}}}",
        "layers: {blocks: {attn: {num_heads: '${hf:n}', rope: '${hf_rope:}'}}}",
        "layers: {blocks: {attn: {rope: {type: yarn, factor: 4, theta: '${hf:t}'}}}}",
        "layers: {blocks: {attn: {qk_norm: {block: LayerNorm, bias: false}, window: null}}}",
        "layers: {blocks: {attn: {qk_norm: {eps: 1e-6}}}}",
        "layers: {blocks: {attn: {window: {per_layer: [4, null]}, rope: {theta: {per_layer: i}}}}}",
        "layers: {blocks: {attn: {qk_norm: {block: QKNorm, norm: {block: RMSNorm}, over: full}}}}",
        "layers: {kinds: [0, 1, true, full], variants: {0: {}, 1: null, a b: {blocks: {x: null}}}}",
        "layers: {count: 2, streams: [x, y], kinds: a if i else b, wiring: [x = x]}",
        "layers: {kinds: {attention: [0, full], mlp: dense if i else moe, other: null}}",
        "matches: {architectures: A, model_type: [a, b]}",
    ],
)
def test_what_a_conf_may_say(text: str) -> None:
    assert _errors("model", text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden_sise: 8", "hidden_sise: 8 is not of type 'object', 'null'"),
        ("hidden_size: 0", "hidden_size: 0 is not valid under any of the given schemas"),
        ("hidden_size: eight", "hidden_size: 'eight' is not valid under any of the given schemas"),
        ("embed: {block: Embeding}", "embed.block: 'Embeding' is not valid"),
        ("embed: {block: Embedding, scal: 2}", "('scal' was unexpected)"),
        ("embed: {block: Embedding, eps: 2}", "('eps' was unexpected)"),
        ("embed: {scal: 2}", "('scal' was unexpected)"),
        ("my-norm: {block: RMSNorm}", "'my-norm' does not match"),
        ("layers: {blocks: {attn: {qk_norm: {block: MLP}}}}", "is not valid under any"),
        ("layers: {blocks: {attn: {qk_norm: {over: heads}}}}", "is not valid under any"),
        (
            "layers: {blocks: {attn: {block: RopeAttn, qk_norm: {block: RMSNorm, over: full}}}}",
            "is not valid under any",
        ),
        ("layers: {blocks: {attn: {rope: {tpye: yarn}}}}", "is not valid under any"),
        ("layers: {blocks: {attn: {window: {per_layr: [4, 8]}}}}", "is not valid under any"),
        ("layers: {blocks: {mlp: {activation: silo}}}", "'silo' is not valid under any"),
        ("layers: {variants: {a: {blcks: {}}}}", "is not valid under any"),
        ("layers: {wiring: x = x}", "layers.wiring: 'x = x' is not valid"),
        ("matches: {architecture: A}", "('architecture' was unexpected)"),
        ("defaults: llama", "defaults: 'llama' is not of type 'array'"),
    ],
)
def test_what_a_conf_may_not_say(text: str, message: str) -> None:
    assert any(message in error for error in _errors("model", text)), _errors("model", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight: {}", "('weight' was unexpected)"),
        ("prefixes: [model]", "prefixes.0: 'model' is not valid"),
        ("tp: {colum: [a]}", "('colum' was unexpected)"),
        ("ignore: {a: 3}", "ignore.a: 3 is not "),
        ("weights: {a: 3}", "weights.a: 3 is not valid"),
        ("weights: {a: {from: b, transpoze: true}}", "weights.a: "),
        ("weights: {a: {from: b, transpose: 1}}", "weights.a: "),
        ("weights: {a: {from: b, per: heads}}", "weights.a: "),
        ("config: {a: {absnt: b}}", "config.a: "),
    ],
)
def test_what_a_weight_map_may_not_say(text: str, message: str) -> None:
    assert any(message in error for error in _errors("weight_map", text))


def test_descriptions_come_from_the_blocks() -> None:
    definitions = SCHEMAS["model"]["$defs"]
    window = definitions["RopeAttn"]["properties"]["window"]
    assert window["description"].startswith("Sliding window in tokens")
    theta = definitions["RopeSettings"]["properties"]["theta"]
    assert theta["description"].startswith("Base of the wavelengths")
    assert (
        "- RopeAttn: Multi-head attention"
        in (definitions["block"]["properties"]["block"]["description"])
    )
    assert definitions["norm_block"]["properties"]["block"]["anyOf"][0]["enum"] == [
        "RMSNorm",
        "LayerNorm",
    ]
