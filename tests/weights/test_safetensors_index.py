"""Safetensors checkpoints: what the headers say, and what is reported when they are wrong."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from assembler.errors import CheckpointError
from assembler.weights.finding import Finding
from assembler.weights.index import read_checkpoint_index
from assembler.weights.tensor_data import TORCH_DTYPES
from assembler.weights.tensor_info import DTYPE_BYTES

INDEX = "model.safetensors.index.json"


def write_raw(file: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] | None = None) -> dict:
    shape = ((end - begin) // DTYPE_BYTES[dtype],) if shape is None else shape
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_shards(folder: Path, shards: dict[str, list[str]], listed: dict[str, str] | None = None):
    """Shards holding the named tensors [2], and an index that says so unless told otherwise."""
    for file, names in shards.items():
        save_file({name: torch.full((2,), float(i)) for i, name in enumerate(names)}, folder / file)
    if listed is None:
        listed = {name: file for file, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": listed}))


def errors(findings: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


# --- reading ------------------------------------------------------------------------------------


def test_every_dtype_reads_back_equal_without_a_copy(tmp_path: Path):
    tensors = {
        name: (torch.arange(6) % 2).reshape(2, 3).to(dtype) for name, dtype in TORCH_DTYPES.items()
    }
    tensors["scalar"], tensors["empty"] = torch.tensor(3.0), torch.empty(0, 4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    index = read_checkpoint_index(tmp_path)
    assert index.format == "safetensors" and index.findings == ()
    assert index.metadata == {"format": "pt"}
    assert set(index.tensors) == set(tensors)
    for name, expected in load_file(tmp_path / "model.safetensors").items():
        found = index.read(name)
        assert found.dtype == expected.dtype and found.shape == expected.shape == tuple(
            index.tensors[name].shape
        )
        assert torch.equal(found.float(), expected.float()), name
        assert index.tensors[name].nbytes == expected.nbytes
    first, again = index.read("F32"), index.read("F32")
    assert first.data_ptr() == again.data_ptr()


def test_widths_are_those_of_torch():
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == DTYPE_BYTES


def test_writing_to_a_tensor_leaves_the_file_alone_and_closing_leaves_the_tensor(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1000)}, file)
    index = read_checkpoint_index(file)
    tensor = index.read("w")
    tensor.zero_()
    index.close()
    assert tensor.sum() == 0
    assert load_file(file)["w"].sum() == 1000 == index.read("w").sum()


def test_misaligned_tensor_is_read(tmp_path: Path):
    data = b"\x01" + struct.pack("<2f", 1.5, -2.0)
    write_raw(tmp_path / "model.safetensors", {"a": entry(0, 1, "U8"), "b": entry(1, 9)}, data)
    index = read_checkpoint_index(tmp_path)
    assert index.findings == ()
    assert index.read("b").tolist() == [1.5, -2.0]
    assert index.read("b").data_ptr() % 4 == 0


def test_unknown_tensor_names_the_nearest(tmp_path: Path):
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.nrm\.weight'.*'model\.norm\.weight'"):
        read_checkpoint_index(tmp_path).read("model.nrm.weight")


def test_config_is_read_and_may_be_absent(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_checkpoint_index(tmp_path).config == {}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_checkpoint_index(tmp_path).config == {"model_type": "llama"}
    assert read_checkpoint_index(tmp_path / "model.safetensors").config == {"model_type": "llama"}
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON.*line 1"):
        read_checkpoint_index(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object but a list"):
        read_checkpoint_index(tmp_path)


# --- headers that cannot be read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 0, inside the 8-byte length"),
        (b"\x10\0\0", "ends at byte 3, inside the 8-byte length"),
        (struct.pack("<Q", 100_000_001) + b"{}", "byte 0 gives the header 100,000,001 bytes"),
        (struct.pack("<Q", 40) + b'{"a"', "ends at byte 12, inside its header of 40 bytes"),
        (struct.pack("<Q", 3) + b" {}", "byte 8 does not begin a JSON object"),
        (struct.pack("<Q", 9) + b'{"a": oh}', "byte 14 of the header is not valid JSON"),
        (struct.pack("<Q", 4) + b'{"\xff}', "byte 10 of the header is not valid JSON .not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid ...", "Run `git lfs pull`"),
    ],
)
def test_unreadable_header_names_file_byte_and_remedy(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint_index(tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": 32, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
    ],
)
def test_malformed_entry_names_the_tensor(tmp_path: Path, broken: object):
    write_raw(tmp_path / "model.safetensors", {"w": broken}, bytes(4))
    with pytest.raises(CheckpointError, match="entry of tensor 'w'"):
        read_checkpoint_index(tmp_path)


# --- headers that are read but wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data", "kind", "subject", "message"),
    [
        (
            b'{"w": {"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b' "w": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
            "duplicate",
            "w",
            "is written twice",
        ),
        ({"w": entry(0, 4) | {"dtype": "F4"}}, 4, "index", "w", "unsupported dtype F4"),
        ({"w": entry(0, 8, shape=(3,))}, 8, "index", "w", "takes 12 bytes, the header gives it 8"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "index", "b", "overlap those of 'a'"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "index", "b", "4 bytes before it belong to no"),
        ({"a": entry(0, 4)}, 9, "index", "model.safetensors", "5 bytes after the last tensor"),
        ({"a": entry(8, 4, shape=())}, 0, "index", "a", "ends at byte 4 .* before it begins at 8"),
        ({"a": entry(0, 400)}, 300, "truncated", "model.safetensors", "bytes, the file has"),
    ],
)
def test_wrong_header_is_a_finding(tmp_path, header, data, kind, subject, message):
    file = write_raw(tmp_path / "model.safetensors", header, bytes(data))
    index = read_checkpoint_index(tmp_path)
    found = [f for f in index.findings if f.kind == kind and f.subject == subject]
    assert found, index.findings
    assert re.search(message, found[0].message)
    assert found[0].where == str(file) and found[0].severity == "error"


def test_truncated_file_is_a_finding_and_reading_its_tensor_an_error(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(100)}, file)
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 100)
    index = read_checkpoint_index(tmp_path)
    (finding,) = index.findings
    assert finding.kind == "truncated" and finding.subject == "model.safetensors"
    assert f"{whole:,}" in finding.message and f"{whole - 100:,}" in finding.message
    with pytest.raises(CheckpointError, match="before tensor 'b' does"):
        index.read("b")
    assert index.read("a").tolist() == [1.0] * 4


def test_unfit_entry_cannot_be_read(tmp_path: Path):
    header = {"f4": entry(0, 4) | {"dtype": "F4"}, "w": entry(4, 12, shape=(3,))}
    write_raw(tmp_path / "model.safetensors", header, bytes(12))
    index = read_checkpoint_index(tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor 'f4' has the type F4.*Supported: F64"):
        index.read("f4")
    with pytest.raises(CheckpointError, match=r"'w', F32 of shape \[3\].*8 bytes"):
        index.read("w")


def test_header_of_ninety_thousand_tensors(tmp_path: Path):
    header = {f"model.layers.{i}.w": entry(4 * i, 4 * i + 4) for i in range(90_000)}
    write_raw(tmp_path / "model.safetensors", header, bytes(4 * 90_000))
    index = read_checkpoint_index(tmp_path)
    assert len(index.tensors) == 90_000 and index.findings == ()


# --- shards -------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_checkpoint_index(tmp_path)


def test_shards_with_an_index(tmp_path: Path):
    write_shards(tmp_path, {"model-1.safetensors": ["a", "b"], "model-2.safetensors": ["c"]})
    index = read_checkpoint_index(tmp_path)
    assert set(index.tensors) == {"a", "b", "c"} and index.findings == ()
    assert index.metadata["total_size"] == 8
    assert index.read("b").tolist() == [1.0, 1.0]


def test_shards_without_an_index_must_be_complete(tmp_path: Path):
    for number in (1, 3):
        name = f"model-{number:05d}-of-00003.safetensors"
        save_file({f"t{number}": torch.ones(1)}, tmp_path / name)
    index = read_checkpoint_index(tmp_path)
    assert set(index.tensors) == {"t1", "t3"}
    (finding,) = index.findings
    assert finding.subject == "model-00002-of-00003.safetensors" and "absent" in finding.message


def test_one_shard_alone_is_noted(tmp_path: Path):
    file = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"a": torch.ones(1)}, file)
    (finding,) = read_checkpoint_index(file).findings
    assert finding.severity == "note" and "one shard of 2" in finding.message


def test_tensor_in_two_shards_names_both(tmp_path: Path):
    shards = {"model-1.safetensors": ["a", "b"], "model-2.safetensors": ["b"]}
    write_shards(tmp_path, shards)
    index = read_checkpoint_index(tmp_path)
    (finding,) = index.findings
    assert finding.kind == "duplicate" and finding.subject == "b"
    assert "model-1.safetensors" in finding.message and "model-2.safetensors" in finding.message
    assert index.tensors["b"].file.name == "model-2.safetensors"  # as the index says


def test_index_that_lists_a_tensor_twice(tmp_path: Path):
    write_shards(tmp_path, {"model-1.safetensors": ["a"]})
    (tmp_path / INDEX).write_text(
        '{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}'
    )
    (finding,) = read_checkpoint_index(tmp_path).findings
    assert finding.kind == "duplicate" and finding.subject == "a"
    assert "model-1.safetensors and in model-2.safetensors" in finding.message


def test_index_naming_an_absent_file_is_one_finding(tmp_path: Path):
    shards = {"model-1.safetensors": ["a"], "model-2.safetensors": ["b", "c", "d", "e"]}
    write_shards(tmp_path, shards)
    (tmp_path / "model-2.safetensors").unlink()
    (finding,) = read_checkpoint_index(tmp_path).findings
    assert finding.kind == "index" and finding.subject == "model-2.safetensors"
    assert "4 tensors (b, c, d, ...)" in finding.message
    assert finding.where == str(tmp_path / INDEX)


def test_index_and_files_that_disagree(tmp_path: Path):
    shards = {"model-1.safetensors": ["a", "extra"], "model-2.safetensors": ["moved"]}
    listed = {
        "a": "model-1.safetensors",
        "gone.weight": "model-2.safetensors",
        "moved": "model-1.safetensors",
    }
    write_shards(tmp_path, shards, listed)
    by_subject = {f.subject: f for f in read_checkpoint_index(tmp_path).findings}
    assert set(by_subject) == {"extra", "gone.weight", "moved"}
    assert "does not list it" in by_subject["extra"].message
    assert "model-2.safetensors, which does not hold it" in by_subject["gone.weight"].message
    assert "It is in model-2.safetensors" in by_subject["moved"].hint


def test_an_absent_shard_is_not_taken_for_one_that_the_index_lists_too(tmp_path: Path):
    shards = {"model-1-of-2.safetensors": ["a"], "model_2.safetensors": ["b"]}
    listed = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    write_shards(tmp_path, shards, listed)
    [finding] = [f for f in read_checkpoint_index(tmp_path).findings if "is absent" in f.message]
    assert finding.hint == "Fetch it into the folder. Did you mean 'model_2.safetensors'?"


def test_all_damaged_shards_come_at_once(tmp_path: Path):
    write_shards(tmp_path, {f"model-{n}.safetensors": [f"w{n}"] for n in range(3)})
    (tmp_path / "model-0.safetensors").write_bytes(b"")
    (tmp_path / "model-2.safetensors").write_bytes(b"<html>404</html>")
    with pytest.raises(CheckpointError, match=r"model-0.* byte 0.*\n.*model-2.* byte 0 gives"):
        read_checkpoint_index(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", 3, "a\\b.safetensors"])
def test_index_may_not_leave_the_folder(tmp_path: Path, name: object):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=r"lists tensor 'w' in .* no file of this folder"):
        read_checkpoint_index(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ("{}", "has no `weight_map`")]
)
def test_index_that_is_none(tmp_path: Path, text: str, message: str):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_index(tmp_path)


# --- what else lies in the folder ---------------------------------------------------------------


def test_hub_files_win_over_consolidated_ones_and_the_rest_is_noted(tmp_path: Path):
    save_file({"layers.0.w": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    save_file({"model.layers.0.w": torch.ones(2)}, tmp_path / "model.safetensors")
    index = read_checkpoint_index(tmp_path)
    assert set(index.tensors) == {"model.layers.0.w"}
    (note,) = index.findings
    assert note.severity == "note" and note.subject == "consolidated.safetensors and 1 more"
    assert str(note).startswith("note: index: consolidated.safetensors and 1 more: not read")


def test_consolidated_files_alone_are_read(tmp_path: Path):
    save_file({"layers.0.w": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    index = read_checkpoint_index(tmp_path)
    assert set(index.tensors) == {"layers.0.w"} and index.findings == ()


def test_single_file_beside_an_index_that_does_not_list_it_is_refused(tmp_path: Path):
    write_shards(tmp_path, {"model-1.safetensors": ["a"]})
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (finding,) = errors(read_checkpoint_index(tmp_path).findings)
    assert finding.subject == "model.safetensors" and "stale" in finding.hint


def test_only_pickles_are_refused_with_the_way_out(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*Convert them to safetensors"):
        read_checkpoint_index(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors and no \.gguf"):
        read_checkpoint_index(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder or file"):
        read_checkpoint_index(tmp_path / "absent")
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        read_checkpoint_index(tmp_path / "weights.txt")


def test_a_finding_is_one_readable_line():
    finding = Finding("shape", "norm.weight", "[3] is not [4]", "a.yaml:7", " Did you mean 'x'?")
    assert str(finding) == "shape: norm.weight: [3] is not [4] (a.yaml:7). Did you mean 'x'?"
    assert str(Finding("map", "a", "b")) == "map: a: b"
