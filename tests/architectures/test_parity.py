"""Every shipped conf computes what transformers computes, whichever way it is run.

Two correct implementations differ by some 1e-5 in float32 at logits of standard deviation 1, and
the smallest wrong scalar moves them by ten times the bound used here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cases import LENGTH, Case, named, sweep
from minicpm_reference import write_minicpm
from tiny_checkpoints import make_checkpoint, reference_logits, to_hub_style, token_ids
from torch import nn

import assembler
from assembler.loading import assemble
from assembler.model.conf_files import search_roots
from assembler.model.detect import detect_conf
from assembler.verifying.paged_texts import PagedTexts

TOLERANCE = 3e-5
PROMPTS = (17, 12)  # tokens of each text that are read before decoding begins
MINICPM_VARIANTS = {
    "minicpm-tied": {},
    "minicpm-untied-mha": {
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
        "rope_theta": 500.0,
        "scale_emb": 2,
        "dim_model_base": 48,
    },
}
ON_TRITON = ("gemma2-softcaps", "phi3-longrope-long-text-tied", "deepseek_v3-groups-yarn")


@dataclass(frozen=True)
class Checkpoint:
    """A tiny checkpoint on disk and the logits its reference computes for `token_ids()`."""

    name: str
    conf: str
    folder: Path
    logits: torch.Tensor
    length_dependent: bool = False
    case: Case | None = None


def _ids_of(source: Case | str) -> str:
    return source if isinstance(source, str) else source.name


@pytest.fixture(scope="module", params=[*sweep(), *MINICPM_VARIANTS], ids=_ids_of)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory) -> Checkpoint:
    source = request.param
    folder = tmp_path_factory.mktemp(_ids_of(source))
    if isinstance(source, Case):
        logits = reference_logits(make_checkpoint(source, folder), token_ids())
        return Checkpoint(source.name, source.conf, folder, logits, source.length_dependent, source)
    reference = write_minicpm(folder, **MINICPM_VARIANTS[source])
    logits = torch.from_numpy(reference.logits(token_ids().numpy())).float()
    return Checkpoint(source, "minicpm", folder, logits)


def assert_close(ours: torch.Tensor, reference: torch.Tensor, where: str) -> None:
    bound = TOLERANCE * max(1.0, float(reference.std()))
    error = float((ours - reference).abs().max())
    assert error <= bound, f"{where}: off by {error:.2e}, allowed are {bound:.2e}"


@torch.no_grad()
def test_dense_logits_equal_the_reference(checkpoint: Checkpoint) -> None:
    assert 0.7 < checkpoint.logits.std() < 1.5  # or the bound means little
    assembly = assemble(checkpoint.folder)
    assert assembly.spec.name == checkpoint.conf
    assert assembly.plan.errors == ()
    model = assembler.load_model(checkpoint.folder)
    assert_close(assembler.logits(model, token_ids()), checkpoint.logits, "dense")


def test_paged_logits_equal_the_reference(checkpoint: Checkpoint) -> None:
    model = assembler.load_model(checkpoint.folder)
    _compare_paged(model, checkpoint, "torch")


def test_both_dialects_of_config_json_mean_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    if checkpoint.case is None:
        pytest.skip("written in the hub's dialect to begin with")
    new = json.loads((checkpoint.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(new))
    to_hub_style(checkpoint.case, tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    assert old != new
    specs = [_spec_data(config) for config in (new, old)]
    assert specs[0] == specs[1]


@pytest.mark.parametrize("name", ON_TRITON)
def test_triton_kernels_give_the_same_logits(name: str, tmp_path: Path) -> None:
    case = named(name)
    logits = reference_logits(make_checkpoint(case, tmp_path), token_ids())
    model = assembler.load_model(tmp_path)
    checkpoint = Checkpoint(name, case.conf, tmp_path, logits)
    _compare_paged(model, checkpoint, "triton", length=PROMPTS[0] + 2)


def _spec_data(config: dict) -> dict:
    conf = detect_conf(config, search_roots())
    return assembler.load_spec(conf.name, config).model_dump(
        exclude={"sources"}, serialize_as_any=True
    )


def _compare_paged(
    model: nn.Module, checkpoint: Checkpoint, backend: str, length: int = LENGTH
) -> None:
    """Prefill in two unequal chunks, then decode token by token; every position must agree.

    `length` is where decoding ends. A model whose frequencies depend on the length of the text
    computes something else while the text grows, so its whole text is the prompt.
    """
    texts = token_ids()
    prompts = (LENGTH, LENGTH) if checkpoint.length_dependent else PROMPTS
    paged = PagedTexts(model, texts, backend)
    first = [5, 9]
    steps = [first, [p - f for p, f in zip(prompts, first, strict=True)]]
    steps += [[1, 1]] * (length - max(prompts))
    for counts in steps:
        before = list(paged.done)
        for s, rows in enumerate(paged.advance(counts, prompts)):
            expected = checkpoint.logits[s, before[s] : paged.done[s]]
            assert_close(rows, expected, f"text {s}, tokens {before[s]} to {paged.done[s] - 1}")
