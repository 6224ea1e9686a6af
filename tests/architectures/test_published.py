"""Every shipped conf at its real size: assembled on meta, against the tensors of a real release."""

from __future__ import annotations

import json
import math

import pytest
import transformers
from published_releases import FOLDER, NAMES, Release, read_release

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError
from assembler.model.conf_files import search_roots
from assembler.model.detect import detect_conf
from assembler.model.spec import ModelSpec
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.weight_map import load_weight_map

# The last rank has the smallest share where heads or rows do not divide.
RANKS = [(size - 1, size) for size in (2, 4, 8)]
RANKS += [pytest.param(0, size, marks=pytest.mark.slow) for size in (2, 4, 8)]


@pytest.fixture(scope="module", params=NAMES)
def release(request: pytest.FixtureRequest) -> Release:
    return read_release(request.param)


def _spec(release: Release) -> ModelSpec:
    conf = detect_conf(release.config, search_roots())
    assert conf.name == release.conf
    return assembler.load_spec(conf.name, release.config)


def _plan(release: Release, tp: TensorParallel) -> LoadPlan:
    spec = _spec(release)
    model = assembler.build_model(spec, tp)
    return plan_load(load_weight_map(spec.weight_map), model, release.index())


def test_the_record_says_where_its_facts_come_from(release: Release) -> None:
    record = json.loads((FOLDER / f"{release.name}.json").read_text())
    facts = {"config", "tensors", "parameters"}
    assert set(record["source"]) == set(record["confirmed"]) == facts
    assert all(record["source"].values())
    assert {type(confirmed) for confirmed in record["confirmed"].values()} == {bool}


def test_the_record_adds_up_to_the_published_count(release: Release) -> None:
    assert sum(math.prod(info.shape) for info in release.tensors.values()) == release.stored


def test_the_model_has_the_published_number_of_parameters(release: Release) -> None:
    model = assembler.build_model(_spec(release))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == release.parameters


def test_the_map_covers_every_tensor(release: Release) -> None:
    plan = _plan(release, TensorParallel())
    assert plan.errors == ()
    assert plan.totals.tensors_covered == plan.totals.tensors == len(release.tensors)
    assert plan.totals.parameters_filled == plan.totals.parameters
    used = {piece.source: piece.info for piece in plan.pieces}
    assert sum(math.prod(info.shape) for info in used.values()) == release.parameters


@pytest.mark.parametrize(("rank", "size"), RANKS)
def test_a_rank_is_covered_or_refused(release: Release, rank: int, size: int) -> None:
    if size in release.refuses_ranks:
        with pytest.raises(SpecError, match=r"cannot share|too few"):
            _plan(release, TensorParallel(rank, size))
        return
    plan = _plan(release, TensorParallel(rank, size))
    assert plan.errors == ()
    assert plan.totals.parameters_filled == plan.totals.parameters


def test_transformers_understands_the_config_alike(release: Release) -> None:
    """What a published config leaves out means what transformers takes it to mean."""
    if release.conf == "minicpm":
        pytest.skip("transformers has no MiniCPM")
    config = dict(release.config)
    theirs = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    complete = {**theirs.to_dict(), "architectures": config["architectures"]}
    full = assembler.load_spec(release.conf, complete)
    assert full.model_dump(exclude={"sources"}) == _spec(release).model_dump(exclude={"sources"})


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_gemma3_rope_at_real_size(kind: str) -> None:
    """Only full layers are scaled; a config that leaves the sliding theta out means 10000."""
    attn = _spec(read_release("gemma-3-4b")).kinds[kind].blocks["attn"]
    local = kind == "sliding_attention"
    assert attn.rope.theta == (10_000.0 if local else 1_000_000.0)
    assert (attn.rope.type, attn.rope.factor) == (("default", None) if local else ("linear", 8.0))
    assert attn.window == (1024 if local else None)


def test_layer_kinds_at_real_size() -> None:
    kinds = _spec(read_release("gemma-3-4b")).layer_kinds
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23, 29]
    kinds = _spec(read_release("gemma-2-9b")).layer_kinds
    assert kinds[:4] == ("sliding_attention", "full_attention") * 2
    assert set(_spec(read_release("qwen2.5-7b")).layer_kinds) == {"full_attention"}
