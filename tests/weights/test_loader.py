"""The streaming loader: all ways of a value to its parameter, each byte read at most once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from loader_harness import Watch, assert_same, load, load_naively, small_chunks, watch  # noqa: F401
from torch import nn
from weights_harness import MAP, decoder, nest, save, tensors, write_map

from assembler.blocks.linear import ColumnLinear
from assembler.blocks.parallel import Part, TensorParallel
from assembler.weights.copy_jobs import (
    DirectRead,
    StagedColumns,
    StagedRows,
    StagedTensor,
    tensor_jobs,
)
from assembler.weights.file_reader import FileReader
from assembler.weights.index import read_checkpoint_index
from assembler.weights.plan import plan_load

WIDE = 40  # columns: several chunks of rows
PARTS = (Part("q", 24, 6), Part("k", 24, 6), Part("v", 24, 6))
FUSED = {
    "in order": "{from: x, parts: [q, k, v]}",
    "other order": "{from: x, parts: [v, q, k]}",
    "head-major": "{from: x, parts: [q, k, v], per: head}",
    "transposed": "{from: x, transpose: true, parts: [q, k, v]}",
    "transposed, head-major": "{from: x, transpose: true, parts: [q, k, v], per: head}",
}


def linear(tp: TensorParallel) -> nn.Module:
    root = nn.Module()
    root.tp = tp
    with torch.device("meta"):
        nest(root, "x", ColumnLinear(WIDE, PARTS, True, tp))
    return root


def fused(folder: Path, rule: str, dtype: torch.dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(72, WIDE).to(dtype), torch.randn(72).to(dtype)
    weight = weight.T if "transpose" in rule else weight
    text = f"weights:\n  x: {rule}\ntp: {{column: x}}\n"
    return write_map(folder, text), save(folder, {"x.weight": weight, "x.bias": bias})


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("tp", [TensorParallel(), TensorParallel(1, 4)], ids=["whole", "rank"])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", FUSED.values(), ids=FUSED.keys())
def test_fused_tensors(rule, to, tp, readers, tmp_path, watch: Watch, small_chunks):  # noqa: F811
    weight_map, index = fused(tmp_path, rule, torch.float32)
    loaded = load(linear(tp), weight_map, index, to, readers=readers)
    watch.assert_each_byte_at_most_once()
    assert_same(loaded, load_naively(linear(tp), weight_map, index, to))


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_merged_decoder(size, to, stored, readers, tmp_path, watch, small_chunks):  # noqa: F811
    weights = {name: value.to(stored) for name, value in tensors(qkv_bias=True).items()}
    weight_map, index = write_map(tmp_path), save(tmp_path, weights)
    for rank in range(size):
        tp = TensorParallel(rank, size)
        watch.reads.clear()
        loaded = load(decoder(qkv_bias=True, tp=tp), weight_map, index, to, readers=readers)
        watch.assert_each_byte_at_most_once()
        assert_same(loaded, load_naively(decoder(qkv_bias=True, tp=tp), weight_map, index, to))


def test_values_at_odd_bytes(tmp_path: Path):
    """Safetensors promises no alignment: a tensor may begin at any byte."""
    weight_map, index = fused(tmp_path, FUSED["in order"], torch.float32)
    expected = load(linear(TensorParallel()), weight_map, index)
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + 3).to_bytes(8, "little") + raw[8 : 8 + length] + b"   " + raw[8 + length :]
    file.write_bytes(shifted)
    text = f"weights:\n  x: {FUSED['in order']}\ntp: {{column: x}}\n"
    index = read_checkpoint_index(tmp_path)
    assert index.tensors["x.weight"].offset % 4
    assert_same(load(linear(TensorParallel()), write_map(tmp_path, text), index), expected)


# What is read, and through what -------------------------------------------------------------------


def kinds_of_jobs(model: nn.Module, weight_map, index, source: str, dtype=torch.float32):
    plan = plan_load(weight_map, model, index)
    memory = {n: torch.empty(p.shape, dtype=dtype) for n, p in model.named_parameters()}
    return [
        type(job) for job in tensor_jobs([p for p in plan.pieces if p.source == source], memory)
    ]


def test_rows_go_straight_into_place_and_columns_are_staged(tmp_path: Path):
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    at, rank = "model.layers.0", TensorParallel(1, 2)

    def kinds(name: str, **options: object) -> set[type]:
        tp = options.pop("tp", TensorParallel())
        return set(kinds_of_jobs(decoder(tp=tp), weight_map, index, name, **options))

    assert kinds(f"{at}.self_attn.k_proj.weight") == {DirectRead}
    assert kinds(f"{at}.self_attn.k_proj.weight", tp=rank) == {DirectRead}
    assert kinds(f"{at}.mlp.down_proj.weight") == {DirectRead}
    assert kinds(f"{at}.mlp.down_proj.weight", tp=rank) == {StagedRows}
    assert kinds(f"{at}.mlp.up_proj.weight", dtype=torch.float16) == {StagedRows}


@pytest.mark.parametrize("rule, kind", [("transposed", StagedRows), ("head-major", StagedTensor)])
def test_only_what_has_no_strides_is_staged_whole(rule: str, kind: type, tmp_path: Path):
    weight_map, index = fused(tmp_path, FUSED[rule], torch.float32)
    kinds = kinds_of_jobs(linear(TensorParallel()), weight_map, index, "x.weight")
    assert set(kinds) == {kind}


def test_a_load_without_casts_needs_no_buffer(tmp_path: Path, watch: Watch):  # noqa: F811
    index = save(tmp_path, tensors())
    load(decoder(), write_map(tmp_path), index)
    assert watch.buffers == []
    assert watch.nbytes == sum(info.nbytes for info in index.tensors.values())


def test_staging_is_bounded(tmp_path: Path, watch: Watch, small_chunks: int):  # noqa: F811
    """One buffer a thread, of one chunk, however large the tensors are."""
    weights = {name: value.bfloat16() for name, value in tensors().items()}
    largest = max(value.nbytes for value in weights.values())
    load(decoder(), write_map(tmp_path), save(tmp_path, weights), readers=2)
    assert max(watch.buffers) <= small_chunks < largest
    watch.buffers.clear()
    weight_map, index = fused(tmp_path / "fused", FUSED["transposed"], torch.float32)
    load(linear(TensorParallel()), weight_map, index, readers=2)
    row = 72 * 4  # more than a chunk, and the least that can be read at a time
    assert max(watch.buffers) <= row < index.tensors["x.weight"].nbytes


def test_a_rank_reads_only_its_rows(tmp_path: Path, watch: Watch):  # noqa: F811
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    model = decoder(tp=TensorParallel(1, 2))
    load(model, weight_map, index)
    by_name: dict[str, int] = dict.fromkeys(index.tensors, 0)
    for _, start, length in watch.reads:
        [name] = [n for n, t in index.tensors.items() if t.offset <= start < t.end]
        by_name[name] += length
    for name, info in index.tensors.items():
        split = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight"))
        if split or name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert by_name[name] == info.nbytes // 2, name
        elif name.endswith("norm.weight"):
            assert by_name[name] == info.nbytes, name
        else:
            assert by_name[name] <= info.nbytes, name


@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16], ids=str)
def test_columns_are_picked_on_disk_where_that_spares_pages(
    to: torch.dtype,
    tmp_path: Path,
    watch: Watch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("assembler.weights.regions.PAGE_BYTES", 8)
    weight_map, index, rank = write_map(tmp_path), save(tmp_path, tensors()), TensorParallel(1, 2)
    down = index.tensors["model.layers.0.mlp.down_proj.weight"]
    kinds = kinds_of_jobs(decoder(tp=rank), weight_map, index, down.name)
    assert set(kinds) == {StagedColumns}
    loaded = load(decoder(tp=rank), weight_map, index, to)
    assert_same(loaded, load_naively(decoder(tp=rank), weight_map, index, to))
    watch.assert_each_byte_at_most_once()
    rows = [n for _, start, n in watch.reads if down.offset <= start < down.end]
    assert rows == [down.nbytes // down.shape[0] // 2] * down.shape[0]


def test_columns_of_a_transposed_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its rows are the parameter's columns: what a rank holds of a row lies in one run."""
    monkeypatch.setattr("assembler.weights.regions.PAGE_BYTES", 4)
    torch.manual_seed(0)
    index = save(tmp_path, {"x.weight": torch.randn(WIDE, 72), "x.bias": torch.randn(72)})
    text = "weights:\n  x: {from: x, transpose: true}\ntp: {column: x}\n"
    weight_map = write_map(tmp_path, text)

    def model() -> nn.Module:
        root = nn.Module()
        root.tp = TensorParallel(1, 4)
        with torch.device("meta"):
            nest(root, "x", ColumnLinear(WIDE, (Part("x", 72, 6),), True, root.tp))
        return root

    assert set(kinds_of_jobs(model(), weight_map, index, "x.weight")) == {StagedColumns}
    assert_same(load(model(), weight_map, index), load_naively(model(), weight_map, index))


def test_readers_ask_for_file_order(tmp_path: Path, watch: Watch):  # noqa: F811
    load(decoder(), write_map(tmp_path), save(tmp_path, tensors()), readers=1)
    starts = [start for _, start, _ in watch.reads]
    assert starts == sorted(starts)


@pytest.mark.parametrize("size", [1, 2])
def test_progress_adds_up(size: int, tmp_path: Path, small_chunks: int):  # noqa: F811
    model, index = decoder(tp=TensorParallel(0, size)), save(tmp_path, tensors())
    plan = plan_load(write_map(tmp_path), model, index)
    done: list[int] = []
    load(model, write_map(tmp_path), index, progress=done.append)
    assert sum(done) == plan.nbytes == sum(info.nbytes for info in index.tensors.values())
    assert len(done) > len(index.tensors)


def test_a_partly_needed_file_is_not_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    advised: list[Sequence[Path]] = []
    made = FileReader.__init__

    def spy(self: FileReader, scattered: Sequence[Path] = ()) -> None:
        advised.append(list(scattered))
        made(self, scattered)

    monkeypatch.setattr(FileReader, "__init__", spy)
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    for size in (1, 2):
        load(decoder(tp=TensorParallel(0, size)), weight_map, index)
    assert advised == [[], [tmp_path / "model.safetensors"]]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:7]], at))
    weight_map, index = write_map(tmp_path, MAP), save(tmp_path, tensors())
    assert_same(load(decoder(), weight_map, index), load_naively(decoder(), weight_map, index))
