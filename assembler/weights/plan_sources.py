"""The second half of a plan: what each recipe reads, held against the tensors on disk."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from assembler.weights.fold import Form, blank_indices, fill_form, format_indices
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.ops import Op, Shape, Unsqueeze, shape_after
from assembler.weights.recipes import Cut, Recipe, Span
from assembler.weights.shape_words import shape_words

# Types whose values are weights as they stand. GGUF's block formats are dequantised on reading;
# 8-bit and packed safetensors mean nothing without the scales that come with them.
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
INTEGER_DTYPES = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})


@dataclass(frozen=True, slots=True)
class Piece:
    """One copy: part of a tensor on disk, through its ops, into part of a parameter."""

    source: str  # name on disk
    info: TensorInfo
    ops: tuple[Op, ...]
    target: str  # parameter
    part: str  # the part of a fused parameter that it fills, "" where nothing is fused
    target_slice: tuple[Span, ...]  # (): the whole parameter
    shape: Shape  # of what is copied
    nbytes: int  # its share of the tensor's bytes on disk


@dataclass(frozen=True)
class TieCheck:
    """A tensor for a parameter that is tied: accepted only if it equals the other one."""

    source: str
    info: TensorInfo
    target: str  # the tied parameter
    twin: str  # the tensor that fills the parameter it is tied to
    tied_to: str


@dataclass
class Resolution:
    """What became of the recipes."""

    pieces: list[Piece] = field(default_factory=list)
    ties: list[TieCheck] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)  # tensor -> parameter
    used: set[str] = field(default_factory=set)  # the claimed tensors that fit
    reported: set[str] = field(default_factory=set)  # tensors some finding already speaks of
    filled: set[str] = field(default_factory=set)  # parameters with all their sources


class SourceResolver:
    """Looks every recipe's tensors up, parameter by parameter."""

    def __init__(
        self, index: CheckpointIndex, prefix: str, untied_heads: frozenset[str] = frozenset()
    ) -> None:
        self.index, self.prefix, self.untied_heads = index, prefix, untied_heads
        self.tensors = index.tensors
        self.out = Resolution()

    def resolve(self, recipes: Mapping[str, list[Recipe]]) -> Resolution:
        """Fill `Resolution` for all parameters, tied ones last."""
        for tied in (False, True):
            for group in recipes.values():
                if (group[0].slot.tied_to is not None) == tied:
                    (self._tied if tied else self._parameter)(group)
        return self.out

    def _parameter(self, group: list[Recipe]) -> None:
        slot = group[0].slot
        found = [self._found(recipe) for recipe in group]
        whole = [len(infos) == len(r.names) for infos, r in zip(found, group, strict=True)]
        fits = [self._claim(recipe, infos) for recipe, infos in zip(group, found, strict=True)]
        if not all(whole):
            self.out.issues += self._absent(group, found)
        elif all(fits):
            self.out.filled.add(slot.name)
            for recipe, infos in zip(group, found, strict=True):
                self.out.pieces += self._pieces(recipe, infos)

    def _tied(self, group: list[Recipe]) -> None:
        """A tied parameter needs no source; one that is there has to be the same tensor again."""
        slot = group[0].slot
        source = group[0].rule.sources[0]
        if len(group) > 1 or group[0].stacked or source.transpose or source.rope:
            message = f"is tied to {slot.tied_to}, so its rule can only name one tensor"
            self.out.issues.append(Issue("map", slot.name, message, (), group[0].rule.where))
            return
        [recipe] = group
        infos = self._found(recipe)
        twins = [name for name, target in self.out.claimed.items() if target == slot.tied_to]
        if not infos or len(twins) != 1 or not self._claim(recipe, infos):
            return
        info = infos[0]
        self.out.ties.append(TieCheck(info.name, info, slot.name, twins[0], slot.tied_to))

    def _found(self, recipe: Recipe) -> dict[int, TensorInfo]:
        """The tensors that are there, by index in the stack (0 where there is none)."""
        prefix, tensors = self.prefix, self.tensors
        looked_up = ((n, tensors.get(prefix + name)) for n, name in enumerate(recipe.names))
        return {n: info for n, info in looked_up if info is not None}

    def _claim(self, recipe: Recipe, infos: Mapping[int, TensorInfo]) -> bool:
        """Take the tensors and check them; false if any cannot be used."""
        found = []
        for info in infos.values():
            issues = []
            if info.name in self.out.claimed:
                names = (self.out.claimed[info.name], recipe.slot.name)
                message = "two parameters want it: {0} and {1}"
                if names[0] == names[1]:
                    message = "{0} wants it twice"
                issues.append(Issue("duplicate", info.name, message, names, recipe.rule.where))
            elif info.shape != recipe.shape:
                issues.append(self._misshapen(recipe, info))
            elif not self._holds_weights(info):
                message = f"is stored as {info.dtype}, which cannot fill {{0}} by itself"
                hint = f"Weights are {', '.join(sorted(PLAIN_DTYPES))}; this one is quantised."
                names = (recipe.slot.name,)
                issues.append(Issue("dtype", info.name, message, names, str(info.file), hint))
            self.out.claimed.setdefault(info.name, recipe.slot.name)
            if not issues:
                self.out.used.add(info.name)
            found += issues
        self.out.issues += found
        return not found

    def _holds_weights(self, info: TensorInfo) -> bool:
        """Whether the values, as they are read, are weights."""
        if self.index.format == "gguf":
            return info.dtype not in INTEGER_DTYPES
        return info.dtype in PLAIN_DTYPES

    def _misshapen(self, recipe: Recipe, info: TensorInfo) -> Issue:
        want, facts = shape_words(recipe, info.shape, self.index.config)
        message = f"has the shape {list(info.shape)}, but {{0}} needs {want}"
        names = (recipe.slot.name,)
        return Issue("shape", info.name, message, names, str(info.file), facts)

    def _pieces(self, recipe: Recipe, infos: Mapping[int, TensorInfo]) -> Iterator[Piece]:
        if not infos:
            return
        cuts = [_Ready(recipe, cut) for cut in recipe.cuts]
        target, stack = recipe.slot.name, recipe.local_stack
        for n, info in infos.items():
            if recipe.stacked and n not in stack:
                continue  # another rank holds this one
            place = (Span(0, n - stack.start, n - stack.start + 1),) if recipe.stacked else ()
            for cut in cuts:
                nbytes = int(info.nbytes * cut.share)
                spans = place + cut.span
                yield Piece(info.name, info, cut.ops, target, cut.part, spans, cut.shape, nbytes)

    def _absent(self, group: list[Recipe], found: list[dict[int, TensorInfo]]) -> Iterator[Issue]:
        """Why a parameter stays unfilled: nothing there, some parts there, a stack with gaps."""
        slot, where = group[0].slot, group[0].rule.where
        gaps = [(r, f) for r, f in zip(group, found, strict=True) if 0 < len(f) < len(r.names)]
        for recipe, infos in gaps:
            yield self._gap(recipe, infos)
        absent = [r for r, infos in zip(group, found, strict=True) if not infos]
        if not absent:
            return
        names = tuple(self.prefix + recipe.pattern for recipe in absent)
        lacking = ", ".join(f"{{{n}}}" for n in range(len(names)))
        if len(absent) < len(group):
            have = [p.name for r, infos in zip(group, found, strict=True) if infos for p in r.parts]
            lack = [part.name for recipe in absent for part in recipe.parts]
            message = f"has {_listed(have)} but not {_listed(lack)}: the checkpoint lacks {lacking}"
            yield Issue("half_merged", slot.name, message, names, where)
            return
        hint = ""
        if slot.module in self.untied_heads:
            hint = " If the head shares the embedding, the config should say tie_word_embeddings."
        message = f"the checkpoint has no {lacking}"
        yield Issue("missing", slot.name, message, names, where, hint)

    def _gap(self, recipe: Recipe, infos: Mapping[int, TensorInfo]) -> Issue:
        """A stack must have exactly 0..E-1; say which indices the disk holds."""
        count = len(recipe.names)
        lacking = format_indices(set(range(count)) - set(infos))
        beyond = self._stack_indices(recipe) - set(infos)
        message = (
            f"stacks {count} tensors {{0}}, numbered 0-{count - 1}; the checkpoint has "
            f"{format_indices({*infos, *beyond})} and lacks {lacking}"
        )
        names = (self.prefix + recipe.pattern,)
        return Issue("missing", recipe.slot.name, message, names, recipe.rule.where)

    def _stack_indices(self, recipe: Recipe) -> set[int]:
        """All the indices that the disk has for a stack, those past its end too."""
        form, first = blank_indices(self.prefix + recipe.names[0])
        second = blank_indices(self.prefix + recipe.names[-1])[1]
        places = [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        if len(places) != 1:
            return set()
        [at], offset = places, first[places[0]]
        found = set()
        for indices in self._indices_by_form[form]:
            if indices[:at] + indices[at + 1 :] == first[:at] + first[at + 1 :]:
                found.add(indices[at] - offset)
                self.out.reported.add(fill_form(form, indices))
        return found

    @cached_property
    def _indices_by_form(self) -> Mapping[Form, list[tuple[int, ...]]]:
        forms: defaultdict[Form, list[tuple[int, ...]]] = defaultdict(list)
        for name in self.tensors:
            form, indices = blank_indices(name)
            forms[form].append(indices)
        return forms


class _Ready:
    """A cut with everything worked out that is the same for every tensor of a stack."""

    def __init__(self, recipe: Recipe, cut: Cut) -> None:
        shape = shape_after(cut.ops, recipe.shape)
        self.share = math.prod(shape) / max(1, math.prod(recipe.shape))
        self.part = cut.part
        self.ops = (*cut.ops, Unsqueeze()) if recipe.stacked else cut.ops
        self.shape = (1, *shape) if recipe.stacked else shape
        span = cut.span
        if span is not None and recipe.stacked:
            span = Span(span.dim + 1, span.start, span.stop)
        self.span = () if span is None else (span,)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
