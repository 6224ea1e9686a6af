"""Files written tensor by tensor, read by the safetensors package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from assembler.weights.checkpoint_files import read_start
from assembler.weights.safetensors_header import read_safetensors_header
from assembler.weights.safetensors_writer import write_safetensors


@dataclass(frozen=True)
class Described:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def write(file: Path, values: dict[str, torch.Tensor]) -> Path:
    tensors = [Described(name, tuple(v.shape), v.dtype) for name, v in values.items()]
    write_safetensors(file, tensors, values.__getitem__)
    return file


def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.bool": torch.tensor([True, False, True]),
        "b.half": torch.randn(3, 5).half(),
        "c.bf16": torch.randn(7).bfloat16(),
        "d.float": torch.randn(2, 3, 4),
        "e.number": torch.tensor(2.5),
        "f.empty": torch.empty(0, 4),
        "g.double": torch.randn(3, dtype=torch.float64),
        "h.transposed": torch.randn(4, 6).t(),
        "i.fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "j.int": torch.arange(5),
        "ü.name": torch.ones(2),
    }


def test_the_package_reads_every_type_and_shape(tmp_path: Path):
    expected = values()
    file = write(tmp_path / "model.safetensors", expected)
    found = load_file(file)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert torch.equal(found[name].float(), value.float()), name
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_every_value_lies_at_a_multiple_of_its_size(tmp_path: Path):
    listing = read_safetensors_header(read_start(write(tmp_path / "model.safetensors", values())))
    assert listing.findings == ()  # no gap, no overlap, no byte too many
    for info in listing.tensors.values():
        width = info.nbytes // info.numel if info.numel else 1
        assert info.offset % width == 0, info.name


def test_files_equal_those_of_the_package(tmp_path: Path):
    """Of one type and in the order of their names: the same bytes, header and all."""
    tensors = {f"layer.{n}": torch.randn(3, n + 1) for n in range(4)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    ours = write(tmp_path / "ours", tensors).read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()


def test_values_are_asked_for_one_after_the_other(tmp_path: Path):
    asked: list[str] = []

    def value_of(name: str) -> torch.Tensor:
        asked.append(name)
        if name == "b":
            raise RuntimeError("disk on fire")
        return torch.ones(2)

    tensors = [Described(name, (2,), torch.float32) for name in "abc"]
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_safetensors(tmp_path / "x", tensors, value_of)
    assert asked == ["a", "b"]
