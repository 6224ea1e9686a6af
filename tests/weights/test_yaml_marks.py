"""YAML with line marks: what is kept, what is refused, and where the messages point."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembler.errors import SpecError, WeightMapError
from assembler.weights.yaml_marks import display_path, load_marked, parse_marked

TEXT = """\
# a comment
name: llama
layers:
  count: 3
  blocks:
    attn: {block: RopeAttn,
           heads: 4}
wiring:
  - x = a
  - y = b
"""


def test_data_and_lines():
    marked = parse_marked(TEXT, "a.yaml")
    assert marked.data["layers"]["blocks"]["attn"] == {"block": "RopeAttn", "heads": 4}
    assert marked.data["wiring"] == ["x = a", "y = b"]
    assert marked.line("name") == 2
    assert marked.line("layers", "blocks", "attn", "heads") == 7
    assert marked.line("wiring", 1) == 10


def test_a_missing_key_has_the_line_of_its_nearest_parent():
    marked = parse_marked(TEXT, "a.yaml")
    assert marked.line("layers", "blocks", "mlp", "size") == 5
    assert marked.line("nothing") == 2
    assert marked.where("layers", "count").endswith("a.yaml:4")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("012", 12),
        ("0o12", 10),
        ("0x1F", 31),
        ("-3", -3),
        ("12:30:45", "12:30:45"),
        ("1e-5", 1e-5),
        ("1.5E3", 1500.0),
        ("-.inf", float("-inf")),
        ("1_000", "1_000"),
        ("~", None),
        ("null", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("'12'", "12"),
        ("!!str 12", "12"),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object):
    data = parse_marked(f"a: {scalar}", "a.yaml").data["a"]
    assert data == value and type(data) is type(value)


def test_keys_are_text():
    assert parse_marked("{on: 1, 2: 3, null: 4}", "a.yaml").data == {"on": 1, "2": 3, "null": 4}


def test_anchors_and_merge_keys():
    text = "base: &b {x: 1, y: 2}\nmore: &m {z: 3}\nuse:\n  <<: [*b, *m]\n  y: 5\n"
    assert parse_marked(text, "a.yaml").data["use"] == {"y": 5, "x": 1, "z": 3}


def test_an_empty_file_is_none():
    assert parse_marked("# nothing\n", "a.yaml").data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n",
            r"a\.yaml:5: the key 'c' is already given on li",
        ),
        ("a: 1\nb: [1, 2\nc: 3\n", r"a\.yaml:[34]: not valid YAML"),
        ("a: 1\n\tb: 2\n", r"a\.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", r"a\.yaml:2: not valid YAML.*another document"),
        ("a: *nowhere\n", r"a\.yaml:1: not valid YAML.*alias"),
        ("a: 1\nb: !!python/object:os.system {}\n", r"a\.yaml:2: the tag .*python.* not allowed"),
        ("a: !mine 3\n", r"a\.yaml:1: the tag '!mine' is not allowed"),
        ("a: !!int three\n", r"a\.yaml:1: 'three' is no int"),
        ("a: &x\n  b: *x\n", r"a\.yaml:1: an alias refers to what contains it"),
        ("a: [b.{i}.c]\n", r"a\.yaml:1: not valid YAML.*names with braces need quotes"),
        ("a: {b: ${hf:x}}\n", r"a\.yaml:1: not valid YAML.*names with braces need quotes"),
        ("a: {[1, 2]: 3}\n", r"a\.yaml:1: a key must be a plain name"),
        ("a:\n  {i}.b: 3\n", r"a\.yaml:2: "),
        ("a: \x01\n", r"a\.yaml: not valid YAML"),
    ],
)
def test_what_is_refused(text: str, message: str):
    with pytest.raises(SpecError, match=message):
        parse_marked(text, "a.yaml", SpecError)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(WeightMapError, match=r"/b\.yaml:2: "):
        load_marked(tmp_path / "b.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightMapError, match=r"^b\.yaml:2: "):
        load_marked(tmp_path / "b.yaml")
    with pytest.raises(SpecError, match=r"^absent\.yaml: cannot be read"):
        load_marked("absent.yaml", SpecError)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read"):
        load_marked("binary.yaml", SpecError)
    assert display_path(tmp_path.parent / "x.yaml") == str(tmp_path.parent / "x.yaml")
