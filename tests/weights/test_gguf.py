"""GGUF files, written by the `gguf` package and by hand, read by our header reader."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from assembler.errors import CheckpointError
from assembler.weights.gguf_header import read_gguf_header
from assembler.weights.index import read_checkpoint_index


def write_gguf(file: Path, *, alignment: int | None = None, only: tuple[str, ...] = ()) -> Path:
    """A small GGUF file with metadata of every type and tensors of several."""
    writer = gguf.GGUFWriter(file, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"test.{kind}", 100 if kind[0] == "u" else -100)
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 1 / 3)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "grüße")
    writer.add_array("test.strings", ["", "a", "Ġthe", "日本"])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.25, -1.5])
    writer.add_array("test.bools", [True, False])
    writer.add_array("test.nested", [[1, 2], [3]])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 64)).astype(np.float32)
    tensors: dict[str, tuple[np.ndarray, str | None]] = {
        "f32": (values, None),
        "f16": (values.astype(np.float16), None),
        "bf16": (gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16), "BF16"),
        "norm": (values[0, :5].copy(), None),
        "i32": (np.arange(6, dtype=np.int32).reshape(1, 2, 3), None),
        "q8": (gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), "Q8_0"),
        "q41": (gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1), "Q4_1"),
        "iq4": (rng.integers(0, 255, (2, 18), np.uint8), "IQ4_NL"),
    }
    for name in only or tensors:
        data, dtype = tensors[name]
        writer.add_tensor(name, data, raw_dtype=dtype and gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def field(text: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def raw_gguf(
    file: Path,
    metadata: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    version: int = 3,
) -> Path:
    """A GGUF file put together from its parts, right or wrong."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head += b"".join(metadata) + b"".join(tensors)
    file.write_bytes(head + bytes(-len(head) % 32) + data)
    return file


def tensor(name: str, shape: tuple[int, ...] = (4,), dtype: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return field(name) + dims + struct.pack("<IQ", dtype, offset)


@pytest.mark.parametrize("alignment", [None, 8, 128])
def test_header_agrees_with_the_gguf_package(tmp_path: Path, alignment: int | None):
    file = write_gguf(tmp_path / "model.gguf", alignment=alignment)
    header = read_gguf_header(file)
    reader = gguf.GGUFReader(file)
    for key, expected in reader.fields.items():
        # The package flattens nested arrays, and its own pseudo fields are no metadata.
        if not key.startswith("GGUF.") and key != "test.nested":
            assert header.metadata[key] == expected.contents(), key
    assert header.metadata["test.nested"] == [[1, 2], [3]]
    assert header.metadata["test.bools"] == [True, False]
    assert header.alignment == (alignment or 32) and header.version == 3
    assert header.findings == () and header.data_offset == reader.data_offset
    assert list(header.tensors) == [t.name for t in reader.tensors]
    for expected in reader.tensors:
        info = header.tensors[expected.name]
        assert info.shape == tuple(reversed(expected.shape.tolist()))
        assert info.dtype == expected.tensor_type.name
        assert (info.offset, info.nbytes) == (expected.data_offset, expected.n_bytes)


def test_tensors_agree_with_the_gguf_package(tmp_path: Path):
    file = write_gguf(tmp_path / "model.gguf")
    index = read_checkpoint_index(file)
    assert index.format == "gguf" and index.config["general.architecture"] == "llama"
    dtypes = {"f16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32}
    for expected in gguf.GGUFReader(file).tensors:
        if expected.name == "iq4":
            continue
        found = index.read(expected.name)
        assert found.dtype == dtypes.get(expected.name, torch.float32)
        values = expected.data
        if expected.name not in ("f32", "f16", "i32", "norm"):
            values = gguf.quants.dequantize(expected.data, expected.tensor_type)
        assert tuple(found.shape) == index.tensors[expected.name].shape
        np.testing.assert_array_equal(found.float().numpy(), values.astype(np.float32))


def test_type_without_a_dequantiser_is_a_finding_and_cannot_be_read(tmp_path: Path):
    index = read_checkpoint_index(write_gguf(tmp_path / "model.gguf"))
    (finding,) = index.findings
    assert finding.subject == "iq4" and "IQ4_NL" in finding.message and "Q6_K" in finding.hint
    with pytest.raises(CheckpointError, match=r"'iq4' has the type IQ4_NL.*Supported: .*Q6_K"):
        index.read("iq4")


def test_a_file_cut_anywhere_is_reported(tmp_path: Path):
    whole = write_gguf(tmp_path / "whole.gguf", only=("f32", "q8")).read_bytes()
    end_of_header = read_gguf_header(tmp_path / "whole.gguf").tensors["f32"].offset
    cut = tmp_path / "cut.gguf"
    entries_end = whole.index(b"q8") + 2 + 4 + 16 + 4 + 8
    for length in range(1, entries_end):
        cut.write_bytes(whole[:length])
        message = rf"cut\.gguf: ends at byte {length:,} while reading (the|metadata) .* at byte \d"
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint_index(cut)
    for length in (entries_end, end_of_header, end_of_header + 1, len(whole) - 33):
        cut.write_bytes(whole[:length])
        index = read_checkpoint_index(cut)
        (finding,) = index.findings
        assert finding.kind == "truncated" and f"the file has {length:,}" in finding.message
        with pytest.raises(CheckpointError, match="before tensor 'q8' does"):
            index.read("q8")


def test_empty_file(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the file is empty"):
        read_checkpoint_index(tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (struct.pack("<4sI", b"GGUF", 1), "GGUF version 1 is not supported, only 2 and 3 are"),
        (struct.pack("<4sI", b"GGUF", 4), "GGUF version 4 is not supported"),
        (struct.pack(">4sI", b"GGUF", 3), "big-endian, which is not supported"),
        (b"ggjt\x03\0\0\0", "begins with b'ggjt', not b'GGUF'.*older than GGUF"),
        (b"version https://git-lfs.github.com", "Run `git lfs pull`"),
    ],
)
def test_what_is_refused_at_once(tmp_path: Path, start: bytes, message: str):
    file = tmp_path / "model.gguf"
    file.write_bytes(start + bytes(64))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_index(file)


def test_version_2_is_read(tmp_path: Path):
    file = raw_gguf(
        tmp_path / "m.gguf", [], [tensor("w")], struct.pack("<4f", 0, 1, 2, 3), version=2
    )
    index = read_checkpoint_index(file)
    assert index.findings == () and index.read("w").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (field("k") + struct.pack("<I", 77), "metadata 'k' has the unknown type 77"),
        (field("k") + struct.pack("<IB", 7, 2), "neither 0 nor 1"),
        (field("k") + struct.pack("<IQ", 8, 1 << 62), "while reading metadata 'k'"),
        (field("k") + struct.pack("<IIQ", 9, 8, 1 << 62), "while reading metadata 'k'"),
        (field("k") + struct.pack("<IIQ", 9, 4, 1 << 62), "while reading metadata 'k'"),
        (field("k") + struct.pack("<IQ", 8, 2) + b"\xc3(", "metadata 'k' is not UTF-8"),
        (field("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, "nests arrays deeper"),
        (field("general.alignment") + struct.pack("<II", 4, 24), "power of two, not 24"),
        (field("general.alignment") + struct.pack("<IQ", 10, 32), "must be a uint32"),
    ],
)
def test_damaged_metadata(tmp_path: Path, entry: bytes, message: str):
    file = raw_gguf(tmp_path / "model.gguf", [entry])
    with pytest.raises(CheckpointError, match=rf"model\.gguf: (byte|ends at byte) .*{message}"):
        read_checkpoint_index(file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tensor("w", dtype=4), "tensor 'w' has the unknown ggml type number 4. Known: F32"),
        (tensor("w", (1, 1, 1, 1, 1)), "'w' has 5 dimensions, more than 4"),
        (tensor("w", (2, 33), 8), "'w' has rows of 33 values, which Q8_0 cannot store.* hold 32"),
    ],
)
def test_impossible_tensor(tmp_path: Path, entry: bytes, message: str):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_index(raw_gguf(tmp_path / "model.gguf", [], [entry]))


def test_wrong_offsets_and_doubles_are_findings(tmp_path: Path):
    twice = [field("k") + struct.pack("<IB", 0, 1)] * 2
    tensors = [tensor("a", (16,)), tensor("b", (8,), 0, 32), tensor("c", (1,), 0, 100)]
    file = raw_gguf(
        tmp_path / "model.gguf", twice, [*tensors, tensor("c", (1,), 0, 128)], bytes(132)
    )
    findings = {(f.kind, f.subject): f.message for f in read_checkpoint_index(file).findings}
    assert findings.keys() == {
        ("duplicate", "k"),
        ("duplicate", "c"),
        ("index", "b"),
        ("index", "c"),
    }
    assert "overlap those of 'a'" in findings["index", "b"]
    assert "offset 100 is no multiple of the alignment, 32" in findings["index", "c"]


def test_split_model_is_read_whole_from_any_of_its_files(tmp_path: Path):
    names = [f"model-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    write_gguf(tmp_path / names[0], only=("f32",))
    raw_gguf(tmp_path / names[1], [], [tensor("a"), tensor("f32", (2,), 0, 32)], bytes(64))
    raw_gguf(tmp_path / names[2], [], [tensor("b")], bytes(16))
    for path in (tmp_path, *(tmp_path / name for name in names)):
        index = read_checkpoint_index(path)
        assert set(index.tensors) == {"f32", "a", "b"}
        assert index.metadata["general.architecture"] == "llama"
        (finding,) = index.findings
        assert finding.kind == "duplicate" and names[0] in finding.message
    (tmp_path / names[2]).unlink()
    findings = read_checkpoint_index(tmp_path / names[0]).findings
    assert [f.subject for f in findings if f.kind == "index"] == [names[2]]


def test_a_folder_of_several_models_asks_for_one(tmp_path: Path):
    raw_gguf(tmp_path / "a.gguf", [], [tensor("w")], bytes(16))
    assert set(read_checkpoint_index(tmp_path).tensors) == {"w"}
    raw_gguf(tmp_path / "b.gguf", [], [tensor("w")], bytes(16))
    with pytest.raises(CheckpointError, match=r"several GGUF models \(a\.gguf, b\.gguf\)"):
        read_checkpoint_index(tmp_path)
