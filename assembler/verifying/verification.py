"""The comparison itself: a model, its reference, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx

from assembler.errors import CheckpointError, OptionError
from assembler.loading import Assembly, assemble, load_weights, logits
from assembler.model.spec import ModelSpec
from assembler.verifying.compare import compare_logits
from assembler.verifying.ids import random_ids
from assembler.verifying.locate import Locator
from assembler.verifying.paged_texts import paged_logits
from assembler.verifying.reference import Reference, load_reference
from assembler.verifying.report import Compared, Difference, VerifyReport
from assembler.verifying.tiny import write_tiny
from assembler.weights.index import CheckpointIndex, read_checkpoint_index
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.tensor_info import TensorInfo
from assembler.weights.weight_map import load_weight_map

_BATCH = 2


@dataclass(frozen=True)
class Request:
    """What is asked; see `assembler.verify.verify_model`."""

    checkpoint: str | Path | None
    conf: str | Path | None
    overrides: tuple[str, ...]
    search_path: tuple[str | Path, ...]
    length: int
    tolerance: float
    paged: bool
    trust_remote_code: bool
    against: Path | None  # None: transformers
    config: Path | None
    model_type: str | None


def verify(request: Request) -> VerifyReport:
    """Compare a checkpoint's model with transformers or with a file."""
    given = {"config": request.config, "model_type": request.model_type}
    for name, value in given.items():
        if value is not None:
            raise OptionError(f"{name}= is for checkpoint=tiny, which makes a model of it")
    assembly = _assemble(request)
    if request.against is not None:
        return _against_file(request, assembly, request.against)
    reference = load_reference(assembly.path, trust_remote_code=request.trust_remote_code)
    return _against_model(request, assembly, reference)


def verify_tiny(request: Request, folder: Path) -> VerifyReport:
    """Make a tiny checkpoint in `folder` and compare its model with the one it was made of."""
    if request.against is not None:
        raise OptionError("checkpoint=tiny is compared with transformers: leave against= out")
    reference = write_tiny(
        folder,
        config=request.config,
        model_type=request.model_type,
        trust_remote_code=request.trust_remote_code,
    )
    assembly = _assemble(replace(request, checkpoint=folder))
    report = _against_model(request, assembly, reference)
    about = request.model_type or request.config
    unseen = _unseen_variants(assembly.spec) if report.passed else ()
    return replace(
        report,
        checkpoint=f"a tiny random model ({about})",
        notes=(*report.notes, *unseen),
    )


def _unseen_variants(spec: ModelSpec) -> Iterator[str]:
    """A note on what the conf has for other configs, and this comparison says nothing about."""
    used = {*spec.variants, *(name for kind in spec.kinds.values() for name in kind.variants)}
    places: dict[str | int, str] = {}  # of each variant that changes anything, its first line
    for key, where in spec.sources.items():
        if "variants" in key[:2]:
            places.setdefault(key[key.index("variants") + 1], where)
    unseen = [f"{name} ({where})" for name, where in places.items() if name not in used]
    if unseen:
        yield (
            f"not compared: {', '.join(unseen)}, variants that nothing in this model is; "
            "config= takes a config.json with other options"
        )


def _assemble(request: Request) -> Assembly:
    """The model on meta. Its rewrites are left out: every block is called as the equations say."""
    assembly = assemble(
        request.checkpoint,
        request.conf,
        request.overrides,
        search_path=request.search_path,
        rewrites="none",
    )
    assert assembly.plan is not None, "assembled with its weights"
    assembly.plan.raise_for_findings()
    return assembly


def _against_model(request: Request, assembly: Assembly, reference: Reference) -> VerifyReport:
    vocab = min(assembly.spec.vocab_size, reference.vocab_size)
    ids = random_ids(vocab, _BATCH, request.length, assembly.config)
    model = load_weights(assembly)
    wanted = reference.logits(ids)
    report = _report(request, assembly, model, ids, wanted, "transformers")
    if report.dense.passed:
        return report
    difference, notes = _locate(request, assembly, model, reference, ids)
    return replace(report, difference=difference, notes=(*report.notes, *notes))


def _against_file(request: Request, assembly: Assembly, file: Path) -> VerifyReport:
    index = read_checkpoint_index(file)
    lacking = [name for name in ("input_ids", "logits") if name not in index.tensors]
    if lacking:
        raise CheckpointError(
            f"against={file}: lacks {' and '.join(lacking)}; it has to hold input_ids [B, L] and "
            "logits [B, L, vocab]"
        )
    ids, wanted = index.read("input_ids").long(), index.read("logits")
    if ids.dim() != 2 or wanted.shape != (*ids.shape, assembly.spec.vocab_size):
        raise CheckpointError(
            f"against={file}: input_ids {list(ids.shape)} and logits {list(wanted.shape)} should "
            f"be [B, L] and [B, L, {assembly.spec.vocab_size}]"
        )
    report = _report(request, assembly, load_weights(assembly), ids, wanted, str(file))
    if report.passed:
        return report
    note = "logits alone do not show where the models part: against=transformers does"
    return replace(report, notes=(*report.notes, note))


@torch.no_grad()
def _report(
    request: Request,
    assembly: Assembly,
    model: fx.GraphModule,
    ids: torch.Tensor,
    wanted: torch.Tensor,
    against: str,
) -> VerifyReport:
    """The logits compared; what is behind a difference is not looked for yet."""
    ours = logits(model, ids)
    if ours.shape != wanted.shape:
        raise CheckpointError(
            f"{assembly.path}: logits {list(ours.shape)}, and {list(wanted.shape)} of {against}: "
            f"vocab_size of conf '{assembly.spec.name}' is {assembly.spec.vocab_size}"
        )
    dense = compare_logits(ours, wanted, request.tolerance)
    paged: Compared | None = None
    notes: tuple[str, ...] = ()
    if request.paged:
        paged = compare_logits(paged_logits(model, ids), wanted, request.tolerance)
        if dense.passed and not paged.passed:
            notes = (
                "dense logits agree and paged ones do not: no YAML is wrong, but a block that "
                "keeps a cache",
            )
    return VerifyReport(
        conf=assembly.spec.name,
        checkpoint=str(assembly.path),
        against=against,
        dense=dense,
        paged=paged,
        notes=notes,
    )


def _locate(
    request: Request,
    assembly: Assembly,
    model: fx.GraphModule,
    reference: Reference,
    ids: torch.Tensor,
) -> tuple[Difference | None, tuple[str, ...]]:
    plan = _named_plan(assembly, reference)
    locator = Locator(assembly, model, reference, plan, ids, request.tolerance)
    notes = []
    if not locator.layers_are_paired:
        notes.append("transformers' layers could not be told: blocks are compared one by one")
    difference = locator.first_difference()
    if difference is None:
        notes.append("no block differs by more than the tolerance: rounding adds up")
    return difference, tuple(notes)


def _named_plan(assembly: Assembly, reference: Reference) -> LoadPlan:
    """The plan in names of tensors that transformers knows: a GGUF file has others."""
    assert assembly.plan is not None and assembly.index is not None
    if assembly.index.format != "gguf":
        return assembly.plan
    tensors = {
        name: TensorInfo(name, tuple(value.shape), "F32", assembly.path, 0, value.nbytes)
        for name, value in reference.model.state_dict().items()
    }
    index = CheckpointIndex(assembly.path, "safetensors", tensors, assembly.config, {})
    weight_map = load_weight_map(assembly.hub_map, assembly.roots)
    return plan_load(weight_map, assembly.model, index)
