"""The streaming loader on GGUF: dequantised a few blocks at a time, judged by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from loader_harness import Watch, load, small_chunks, watch  # noqa: F401
from torch import nn
from weights_harness import nest, write_map

from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.blocks.parallel import Part, TensorParallel
from assembler.weights.index import read_checkpoint_index

MAP = """\
weights:
  up: [{from: gate, rope: interleaved_to_half}, up]
  down: down
tp: {column: [up], row: [down]}
"""
ROWS, COLUMNS = 8, 128


def model(tp: TensorParallel) -> nn.Module:
    root = nn.Module()
    root.tp = tp
    parts = (Part("gate", ROWS, 4), Part("up", ROWS, 4))
    with torch.device("meta"):
        nest(root, "up", ColumnLinear(COLUMNS, parts, False, tp))
        nest(root, "down", RowLinear(Part("in", COLUMNS), ROWS, False, tp))
    return root


def write(folder: Path, kind: gguf.GGMLQuantizationType) -> dict[str, torch.Tensor]:
    """A GGUF file; returns what the gguf package makes of its values."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "tiny")
    values = {}
    for name in ("gate", "up", "down"):
        packed = quantize(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        values[name] = torch.from_numpy(dequantize(packed, kind)).reshape(ROWS, COLUMNS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_quantised_tensors(kind, size, to, tmp_path, watch: Watch, small_chunks):  # noqa: F811
    values = write(tmp_path, gguf.GGMLQuantizationType[kind])
    half = values["gate"].view(-1, 2, 2, COLUMNS).swapaxes(1, 2).reshape(ROWS, COLUMNS)
    for rank in range(size):
        index = read_checkpoint_index(tmp_path)
        watch.reads.clear()
        tp = TensorParallel(rank, size)
        loaded = load(model(tp), write_map(tmp_path, MAP), index, to, readers=2)
        watch.assert_each_byte_at_most_once()
        up = torch.cat([half.chunk(size)[rank], values["up"].chunk(size)[rank]])
        assert torch.equal(loaded["up.weight"], up.to(to))
        assert torch.equal(loaded["down.weight"], values["down"].chunk(size, 1)[rank].to(to))
