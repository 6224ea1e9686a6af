"""`plan_load`: map x model x checkpoint headers -> every copy to make, and all that is wrong.

A plan is pure data and made without reading one weight. Loading, coverage reports, memory estimates
and progress bars read it; only `execute_plan` has effects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from assembler.errors import CheckpointError, did_you_mean
from assembler.weights.cache_scales import CacheScale, find_cache_scales
from assembler.weights.collector import collector_paused
from assembler.weights.finding import Finding
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue, fold_issues
from assembler.weights.map_options import ParameterType
from assembler.weights.naming import Naming
from assembler.weights.pairing import pair_tensors
from assembler.weights.parameters import ModelParameters, ParameterSlot, read_parameters
from assembler.weights.pieces import Constant, Piece, TieCheck
from assembler.weights.plan_rules import match_rules
from assembler.weights.plan_sources import Resolution, SourceResolver
from assembler.weights.prefixes import choose_naming, foreign_prefix
from assembler.weights.quantized import tensors_of
from assembler.weights.recipes import Span
from assembler.weights.unclaimed import IgnoredTensor, sort_unclaimed
from assembler.weights.weight_map import WeightMap

__all__ = [
    "Constant",
    "IgnoredTensor",
    "LoadPlan",
    "Piece",
    "Span",
    "TieCheck",
    "Totals",
    "plan_load",
]

MOST_LISTED = 30  # findings in one error message


@dataclass(frozen=True)
class Totals:
    """How much of both sides the plan covers. Bytes are those on disk."""

    tensors: int
    tensors_covered: int  # used, checked against a tie, or ignored with a reason
    nbytes: int
    nbytes_covered: int
    parameters: int
    parameters_filled: int  # tied ones are not counted: they have no memory of their own


@dataclass(frozen=True)
class LoadPlan:
    """The copies that load a checkpoint into one rank's model, in file order, and the findings."""

    map_name: str
    root: Path
    prefix: str  # the one of the map's prefixes that this checkpoint has, as text
    rank: int
    size: int
    parameters: tuple[ParameterSlot, ...]
    pieces: tuple[Piece, ...]
    ties: tuple[TieCheck, ...]
    ignored: tuple[IgnoredTensor, ...]
    findings: tuple[Finding, ...]
    totals: Totals
    constants: tuple[Constant, ...] = ()
    dtypes: Mapping[str, ParameterType] = field(default_factory=dict)  # whatever the load's dtype
    naming: Naming = field(default_factory=Naming)  # of the checkpoint against the map's
    cache_scales: tuple[CacheScale, ...] = ()  # to be read, of an 8-bit KV cache

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stand in the way of loading (notes do not)."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that loading reads."""
        infos = {piece.source: piece.info for piece in self.pieces}
        return sum(info.nbytes for info in infos.values())

    def raise_for_findings(self) -> None:
        """Raise one CheckpointError that lists every finding that is an error, if there is one."""
        errors = self.errors
        if not errors:
            return
        count = "1 finding" if len(errors) == 1 else f"{len(errors)} findings"
        lines = [f"{self.root} does not fit the model (weight map '{self.map_name}'): {count}"]
        lines += [f"  {finding}" for finding in errors[:MOST_LISTED]]
        if len(errors) > MOST_LISTED:
            lines.append(f"  and {len(errors) - MOST_LISTED} more")
        raise CheckpointError("\n".join(lines))


def plan_load(
    weight_map: WeightMap,
    model: nn.Module,
    index: CheckpointIndex,
    *,
    cut: str | None = None,
    fp8_cache: bool = False,
) -> LoadPlan:
    """Work out how `index` fills `model`, without reading weights or changing anything.

    Args:
        weight_map: how names on disk map to the model's.
        model: an assembled model (on meta) whose blocks declare `shard_dims()`; its `tp` says which
            rank's slices are wanted.
        index: the checkpoint's headers.
        cut: why the model was given fewer layers than the checkpoint has; the tensors of the
            others are then left out with this reason instead of being findings.
        fp8_cache: whether the KV cache will be one of 8 bits, whose scales are then read.

    Returns:
        The plan. Nothing is raised for a checkpoint that does not fit: that is in `findings`.
    """
    with collector_paused():
        return _plan(weight_map, model, index, cut, fp8_cache)


def _plan(
    weight_map: WeightMap,
    model: nn.Module,
    index: CheckpointIndex,
    cut: str | None,
    fp8_cache: bool,
) -> LoadPlan:
    parameters = read_parameters(model)
    matched = match_rules(weight_map, parameters)
    recipes = list(matched.recipes)
    pairing = pair_tensors(index, weight_map, recipes)
    tensors = pairing.index.tensors
    naming, found = choose_naming(weight_map.prefixes, recipes, tensors)
    resolver = SourceResolver(pairing.index, naming, parameters.untied_heads)
    resolution = resolver.resolve(matched.ways)
    taken = {*resolution.claimed, *resolution.reported}
    spare = {name: info for name, info in tensors.items() if name not in taken}
    scales = find_cache_scales(
        model, resolution.pieces, spare, weight_map.cache_scales, wanted=fp8_cache
    )
    left = [info for name, info in spare.items() if name not in scales.names]
    ignores = replace(weight_map, ignore=(*weight_map.ignore, *pairing.ignore))
    aside, unclaimed = sort_unclaimed(ignores, parameters, left, naming, matched.misfits, cut)
    aside += [IgnoredTensor(spare[name], why) for name, why in scales.aside.items()]
    ignored = [half for item in aside for half in pairing.halves_of(item)]
    issues = [*matched.issues, *pairing.explained([*resolution.issues, *unclaimed])]
    issues += [*pairing.issues, *scales.issues]
    if not found and recipes:  # one prefix is the cause of all that is missing and unclaimed
        issues = list(foreign_prefix(weight_map, matched.ways, tensors)) or issues
    if pairing.refusal is not None:  # the cause of all else, or of nothing
        issues = [pairing.refusal if issues else replace(pairing.refusal, severity="note")]
    pieces = sorted(resolution.pieces, key=lambda p: (str(p.info.file), p.info.offset))
    return LoadPlan(
        map_name=weight_map.name,
        root=index.root,
        prefix=str(naming),
        rank=parameters.tp.rank,
        size=parameters.tp.size,
        parameters=tuple(parameters.slots.values()),
        pieces=tuple(pieces),
        ties=tuple(resolution.ties),
        ignored=tuple(ignored),
        findings=(*index.findings, *_findings(issues)),
        totals=_totals(index, tensors, parameters, resolution, ignored, scales.wanted),
        constants=tuple(resolution.constants),
        dtypes=matched.dtypes,
        naming=naming,
        cache_scales=scales.wanted,
    )


def _totals(
    index: CheckpointIndex,
    tensors: Mapping[str, TensorInfo],  # pairs joined
    parameters: ModelParameters,
    resolution: Resolution,
    ignored: list[IgnoredTensor],
    scales: Iterable[CacheScale],
) -> Totals:
    covered = [info for name in resolution.used for info in tensors_of(tensors[name])]
    covered += [item.info for item in ignored]
    covered += {scale.info.name: scale.info for scale in scales}.values()
    return Totals(
        tensors=len(index.tensors),
        tensors_covered=len(covered),
        nbytes=sum(info.nbytes for info in index.tensors.values()),
        nbytes_covered=sum(info.nbytes for info in covered),
        parameters=sum(slot.tied_to is None for slot in parameters.slots.values()),
        parameters_filled=len(resolution.filled),
    )


def _whole_tensor(issue: Issue, spare: list[str]) -> str:
    """What to do where the tensor is there under the module's name: its rule is a parameter's."""
    bare, _, leaf = issue.names[0].rpartition(".")
    if bare not in spare or not issue.subject.endswith(f".{leaf}"):
        return ""
    return f" A tensor without '.{leaf}' needs a rule with '.{leaf}' in its target."


def _findings(issues: list[Issue]) -> list[Finding]:
    """Fold the issues; hint at the spare tensor nearest to a missing one, and the reverse."""
    folded = fold_issues(issues)
    spare = [issue.subject for issue in folded if issue.kind == "unclaimed"]
    wanted = [n for i in folded if i.kind in ("missing", "half_merged") for n in i.names]
    findings = []
    for issue in folded:
        finding = issue.finding()
        if issue.kind in ("missing", "half_merged") and issue.names:
            hints = (did_you_mean(name, spare, most=1) for name in issue.names[:2])
            near = "".join(dict.fromkeys(hints))
        elif issue.kind == "unclaimed" and len(issue.names) == 0:
            near = did_you_mean(issue.subject, wanted, most=1)
        else:
            near = ""
        if near and issue.names:
            near += _whole_tensor(issue, spare)
        findings.append(replace(finding, hint=f"{near}{finding.hint}"))
    return findings
