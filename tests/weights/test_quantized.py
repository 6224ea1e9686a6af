"""Quantised checkpoints: two tensors load as one, whole, sliced and written back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_harness import Watch, assert_same, load, watch  # noqa: F401 (a fixture)
from quantized_cases import FP8, Tensors, by_blocks, decoded, fp8
from random_maps import RandomMap, random_maps
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from weights_harness import CONFIG, decoder, lone, save, tensors, write_map

from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.weights import copy_jobs
from assembler.weights.export_plan import export_plan
from assembler.weights.index import CheckpointIndex, read_checkpoint_index
from assembler.weights.plan import plan_load
from assembler.weights.quantized import Mxfp4, QuantizedInfo, ScaledFloat8

BLOCK = (4, 5)  # divides nothing: not the heads, not the shares of ranks
DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}


def write(folder: Path, weights: Tensors, quantization: dict | None = None) -> CheckpointIndex:
    folder.mkdir(exist_ok=True)
    if quantization is not None:
        config = CONFIG | {"quantization_config": quantization, "torch_dtype": "bfloat16"}
        save(folder, weights)
        (folder / "config.json").write_text(json.dumps(config))
        return read_checkpoint_index(folder)
    return save(folder, weights)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_release_loads_through_the_plain_map(
    size: int, dtype: torch.dtype, tmp_path: Path
):
    disk, plain = fp8(tensors(), BLOCK)
    weight_map = write_map(tmp_path)
    quantised, whole = write(tmp_path / "q", disk, DEEPSEEK), save(tmp_path / "p", plain)
    for rank in range(size):
        tp = TensorParallel(rank, size)
        models = [decoder(tp=tp), decoder(tp=tp)]
        got = load(models[0], weight_map, quantised, dtype)
        assert_same(got, load(models[1], weight_map, whole, dtype))


def test_it_is_read_in_small_pieces(
    watch: Watch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setattr(copy_jobs, "STAGED_BYTES", 96)
    disk, plain = fp8(tensors(), BLOCK)
    quantised, whole = write(tmp_path / "q", disk, DEEPSEEK), save(tmp_path / "p", plain)
    weight_map = write_map(tmp_path)
    got = load(decoder(), weight_map, quantised)
    assert max(watch.buffers) <= 4 * 24 * 2
    assert_same(got, load(decoder(), weight_map, whole))


def test_totals_count_what_is_on_disk(tmp_path: Path):
    disk, _ = fp8(tensors(), BLOCK)
    index = write(tmp_path / "q", disk, DEEPSEEK)
    plan = plan_load(write_map(tmp_path), decoder(), index)
    assert plan.totals.tensors == plan.totals.tensors_covered == len(disk)
    assert plan.totals.nbytes_covered == sum(v.numel() * v.itemsize for v in disk.values())
    assert plan.nbytes == plan.totals.nbytes


def float8_group(strategy: str) -> dict:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    if strategy == "block":
        weights["block_structure"] = list(BLOCK)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_compressed_tensors(strategy: str, dtype: torch.dtype, tmp_path: Path):
    disk, plain = {}, {}
    for name, value in tensors().items():
        disk[name] = plain[name] = value
        if "_proj." in name:
            block = {"tensor": value.shape, "channel": (1, value.shape[1])}.get(strategy, BLOCK)
            values, scales = by_blocks(value, block)
            scales = scales.to(dtype)
            plain[name] = decoded(values, scales, block)
            scales = scales.reshape(1) if strategy == "tensor" else scales
            disk |= {name: values, f"{name}_scale": scales}
            disk[name.replace("weight", "input_scale")] = torch.ones(1)
    index = write(tmp_path / "q", disk, float8_group(strategy))
    weight_map = write_map(tmp_path)
    got = load(decoder(), weight_map, index)
    assert_same(got, load(decoder(), weight_map, save(tmp_path / "p", plain)))
    plan = plan_load(weight_map, decoder(), index)
    assert {item.reason for item in plan.ignored} == {"activations are not quantised here"}


def test_transformers_means_the_same_by_fp8(tmp_path: Path):
    """Its own dequantisation, which knows only blocks that divide the weight."""
    torch.manual_seed(0)
    values, scales = by_blocks(torch.randn(12, 20), (4, 5))
    expected = Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)
    index = write(tmp_path / "q", {"y.weight": values, "y.weight_scale_inv": scales}, DEEPSEEK)
    layout = ShardDim("replicated", (12, 20))
    got = load(lone(layout), write_map(tmp_path, "weights: {x: y}\n"), index)
    assert torch.equal(got["x.weight"], expected)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_range_of_float8_values(data: st.DataObject):
    matrices, rows, columns = (data.draw(st.integers(1, n)) for n in (3, 9, 9))
    block = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 10))
    values = torch.randn(matrices, rows, columns).to(FP8)
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales = torch.rand(matrices, *grid)
    whole = torch.stack([decoded(v, s, block) for v, s in zip(values, scales, strict=True)])
    decoder = ScaledFloat8(rows, columns, block, "F8_E4M3", "F32")
    _check_range(data, decoder, values, scales, whole.flatten())


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_range_of_mxfp4_values(data: st.DataObject):
    experts, rows, groups = (data.draw(st.integers(1, n)) for n in (2, 3, 3))
    values = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8)
    scales = torch.randint(90, 160, (experts, rows, groups), dtype=torch.uint8)
    whole = convert_moe_packed_tensors(values, scales, dtype=torch.float32).transpose(1, 2)
    _check_range(data, Mxfp4(), values, scales, whole.flatten())


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(random_maps(alternatives=True), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_any_map_of_plain_weights_reads_quantised_ones(made: RandomMap, block: tuple[int, int]):
    """Whatever a rule does to a tensor, and whichever share of it a rank takes."""
    disk, plain = {}, {}
    for name, value in made.disk.items():
        values, scales = by_blocks(value, block)
        disk |= {name: values, f"{name}_scale_inv": scales}
        plain[name] = decoded(values, scales, block)
    method = {"quant_method": "fp8", "weight_block_size": list(block)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weight_map = write_map(folder, made.text)
        quantised, whole = write(folder / "q", disk, method), save(folder / "p", plain)
        for rank in range(made.ranks):
            tp = TensorParallel(rank, made.ranks)
            expected = load(lone(made.layout, tp=tp), weight_map, whole)
            assert_same(load(lone(made.layout, tp=tp), weight_map, quantised), expected)


def _check_range(data, decoder, values, scales, whole) -> None:
    """Reading just the covering bytes gives the values of the whole tensor."""
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    part = decoder.covering(start, stop)
    assert part.first <= start and stop <= part.first + part.count <= len(whole)
    out = torch.empty(part.count)
    raw = [x.reshape(-1).view(torch.uint8) for x in (values, scales)]
    spans = (part.value_bytes, part.scale_bytes)
    halves = [x[s.start : s.stop] for x, s in zip(raw, spans, strict=True)]
    decoder.decode(part, *halves, out)
    assert torch.equal(out, whole[part.first : part.first + part.count])


GPT_OSS = (
    "weights:\n  layers.{i}.experts: "
    "{from: 'layers.{i}.gate_up_proj', transpose: true, parts: [gate, up], per: row}\n"
    "tp: {column: experts}\n"
)


def gpt_oss(experts: int = 3, inter: int = 5, groups: int = 2) -> tuple[Tensors, torch.Tensor]:
    """(on disk, as transformers has it [E, H, 2I])."""
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (experts, 2 * inter, groups, 16), dtype=torch.uint8)
    scales = torch.randint(110, 132, (experts, 2 * inter, groups), dtype=torch.uint8)
    name = "layers.0.gate_up_proj"
    disk = {f"{name}.weight_blocks": blocks, f"{name}.weight_scales": scales}
    return disk, convert_moe_packed_tensors(blocks, scales)


@pytest.mark.parametrize("size", [1, 2])
def test_mxfp4_experts(size: int, tmp_path: Path):
    disk, whole = gpt_oss(inter=6)
    index = write(tmp_path / "q", disk, {"quant_method": "mxfp4"})
    weight_map = write_map(tmp_path, GPT_OSS)
    layout = ShardDim("column", (3, 12, 64), 1, (Part("gate", 6), Part("up", 6)))
    gate, up = whole[..., ::2].transpose(1, 2), whole[..., 1::2].transpose(1, 2)
    for rank in range(size):
        model = lone(layout, "layers.0.experts", TensorParallel(rank, size))
        got = load(model, weight_map, index, torch.bfloat16)["layers.0.experts.weight"]
        share = slice(rank * 6 // size, (rank + 1) * 6 // size)
        assert torch.equal(got, torch.cat([gate[:, share], up[:, share]], 1))


def test_a_rule_may_say_it_itself(tmp_path: Path):
    values, scales = by_blocks(torch.randn(6, 10), BLOCK)
    text = "weights: {x: {from: y, dequantize: {format: fp8, scales: _s, block: [4, 5]}}}\n"
    index = save(tmp_path / "q", {"y.weight": values, "y.weight_s": scales})
    got = load(lone(ShardDim("replicated", (6, 10))), write_map(tmp_path, text), index)
    assert torch.equal(got["x.weight"], decoded(values, scales, BLOCK))


def test_a_map_may_declare_a_method(tmp_path: Path):
    values, scales = by_blocks(torch.randn(6, 10), BLOCK)
    base = "weights: {x: y}\nquantization: {mine: {format: fp8, scales: [_t, _s], block: [4, 5]}}\n"
    write_map(tmp_path, base, "base")
    weight_map = write_map(tmp_path, "extends: base\nweights: {}\n", "derived")
    index = write(
        tmp_path / "q", {"y.weight": values, "y.weight_s": scales}, {"quant_method": "mine"}
    )
    got = load(lone(ShardDim("replicated", (6, 10))), weight_map, index)
    assert torch.equal(got["x.weight"], decoded(values, scales, BLOCK))


def test_an_unknown_method_with_plain_weights_is_worth_a_note(tmp_path: Path):
    index = write(tmp_path / "q", tensors(), {"quant_method": "bitsandbytes"})
    plan = plan_load(write_map(tmp_path), decoder(), index)
    assert [f.severity for f in plan.findings] == ["note"]
    assert "quantised with 'bitsandbytes'" in str(plan.findings[0])


def test_an_ignored_weight_takes_its_scale_along(tmp_path: Path):
    disk, _ = fp8(tensors(), BLOCK)
    mtp = {"model.layers.9.eh_proj.weight": torch.zeros(4, 5).to(FP8)}
    mtp["model.layers.9.eh_proj.weight_scale_inv"] = torch.ones(1, 1)
    text = write_map.__defaults__[0] + '  "*.eh_proj.weight": not part of the model\n'
    plan = plan_load(write_map(tmp_path, text), decoder(), write(tmp_path, disk | mtp, DEEPSEEK))
    assert not plan.findings
    assert {item.info.name for item in plan.ignored} == set(mtp)
    assert all(item.quantized for item in plan.ignored)


def test_what_an_export_writes_and_says(tmp_path: Path):
    disk, plain = fp8(tensors(), BLOCK)
    index = write(tmp_path / "q", disk, DEEPSEEK)
    plan = export_plan(write_map(tmp_path), decoder(), like=index)
    assert {tensor.name for tensor in plan.tensors} == plain.keys()
    plan.raise_for_findings()  # it only rounds
    reasons = {loss.reason for loss in plan.losses}
    assert reasons == {"loses the quantised form (FP8): the dequantised weight is written"}
    quantised = next(t for t in plan.tensors if t.name.endswith("down_proj.weight"))
    assert quantised.dtype == torch.bfloat16 and not isinstance(quantised, QuantizedInfo)
