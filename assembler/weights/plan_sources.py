"""The second half of a plan: what each recipe reads, held against the tensors on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from assembler.weights.claims import Claims, misshapen
from assembler.weights.cuts import Misfit, Span, cut_rows
from assembler.weights.fold import Form, blank_indices, fill_form, format_indices
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.naming import Naming
from assembler.weights.ops import Transpose
from assembler.weights.pieces import Constant, Piece, TieCheck, make_pieces
from assembler.weights.recipes import Recipe, Way

Found = dict[int, TensorInfo]  # by index in the stack, 0 where there is none


@dataclass
class Resolution:
    """What became of the recipes."""

    pieces: list[Piece] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    ties: list[TieCheck] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    claimed: dict[str, str] = field(default_factory=dict)  # tensor -> parameter
    used: set[str] = field(default_factory=set)  # the claimed tensors that fit
    reported: set[str] = field(default_factory=set)  # tensors some finding already speaks of
    filled: set[str] = field(default_factory=set)  # parameters with all their sources


class SourceResolver:
    """Looks every recipe's tensors up, parameter by parameter."""

    def __init__(
        self, index: CheckpointIndex, naming: Naming, untied_heads: frozenset[str] = frozenset()
    ) -> None:
        self.index, self.naming, self.untied_heads = index, naming, untied_heads
        self.tensors = index.tensors
        self.claims = Claims(index)
        self.out = Resolution(claimed=self.claims.owners, used=self.claims.used)
        self._chosen: dict[str, Way] = {}

    def resolve(self, ways: Mapping[str, Sequence[Way]]) -> Resolution:
        """Fill `Resolution` for all parameters, tied ones last."""
        for tied in (False, True):
            for choices in ways.values():
                if (choices[0].slot.tied_to is not None) == tied:
                    way = self._chosen[choices[0].slot.name] = self._choose(choices)
                    if tied:
                        self._tied(way)
                    else:
                        self._parameter(way, choices)
        self.out.issues += self.claims.unused_shares()
        return self.out

    def _choose(self, choices: Sequence[Way]) -> Way:
        """The first way that is there whole, else the one with most sources, else the first."""
        if len(choices) == 1:
            return choices[0]
        best, most = choices[0], 0
        for way in choices:
            found = [self._found(recipe) for recipe in way.recipes]
            whole = (len(f) == len(r.names) for f, r in zip(found, way.recipes, strict=True))
            if all(whole):
                return way
            begun = sum(map(bool, found))
            if begun > most:
                best, most = way, begun
        return best

    def _parameter(self, way: Way, choices: Sequence[Way]) -> None:
        if way.fill is not None:
            self.out.constants.append(Constant(way.slot.name, (), way.fill))
            self.out.filled.add(way.slot.name)
            return
        group = way.recipes
        found = [self._found(recipe) for recipe in group]
        whole = [len(infos) == len(r.names) for infos, r in zip(found, group, strict=True)]
        fits = [self._claim(recipe, infos) for recipe, infos in zip(group, found, strict=True)]
        if not all(whole):
            others = [other for other in choices if other is not way and not any(found)]
            self.out.issues += self._absent(group, found, others)
        elif all(fits):
            self.out.filled.add(way.slot.name)
            for recipe, infos in zip(group, found, strict=True):
                self._take(recipe, infos)

    def _take(self, recipe: Recipe, infos: Found) -> None:
        """The pieces of a recipe whose tensors are all there and fit."""
        if recipe.source.any_rows:
            recipe, rest = self._with_rows(recipe, infos[0])
            if rest is not None:
                assert recipe.source.pad is not None
                self.out.constants.append(Constant(recipe.slot.name, (rest,), recipe.source.pad))
        self.out.pieces += make_pieces(recipe, infos)

    def _tied(self, way: Way) -> None:
        """A tied parameter needs no source; one that is there has to be the same tensor again."""
        slot, found = way.slot, [self._found(recipe) for recipe in way.recipes]
        twin = self._chosen.get(slot.tied_to or "")
        if not any(found) or twin is None:
            return
        recipe, sources = way.recipes[0], twin.rule.sources
        alike = [replace(source, pattern=recipe.source.pattern) for source in sources]
        if alike != [recipe.source] or len(found) > 1 or recipe.stacked:
            message = f"is tied to {slot.tied_to}, so its rule has to do with one tensor the same"
            self.out.issues.append(Issue("map", slot.name, message, (), way.rule.where))
            self.out.reported |= {info.name for infos in found for info in infos.values()}
            return
        twins = [name for name, target in self.out.claimed.items() if target == slot.tied_to]
        if len(twins) == 1 and self._claim(recipe, found[0]):
            info = found[0][0]
            self.out.ties.append(TieCheck(info.name, info, slot.name, twins[0], slot.tied_to))

    def _found(self, recipe: Recipe) -> Found:
        """The tensors that are there."""
        on_disk, tensors = self.naming.on_disk, self.tensors
        looked_up = ((n, tensors.get(on_disk(name))) for n, name in enumerate(recipe.names))
        return {n: info for n, info in looked_up if info is not None}

    def _claim(self, recipe: Recipe, infos: Found) -> bool:
        """Take the tensors and check them; false if any cannot be used."""
        issues = []
        for info in infos.values():
            sized = recipe
            if recipe.source.any_rows:
                try:
                    sized, _ = self._with_rows(recipe, info)
                except Misfit as misfit:
                    issues.append(misshapen(recipe, info, self.index, str(misfit)))
                    self.out.claimed.setdefault(info.name, recipe.slot.name)
                    continue
            issues.append(self.claims.take(sized, info))
        found = [issue for issue in issues if issue is not None]
        self.out.issues += found
        return not found

    def _with_rows(self, recipe: Recipe, info: TensorInfo) -> tuple[Recipe, Span | None]:
        """The recipe for the rows that the tensor has, and what is left to pad. Raises Misfit."""
        swap = recipe.source.transpose and len(info.shape) > 1
        shape = Transpose().shape(info.shape) if swap else info.shape
        own = Transpose().shape(recipe.shape) if swap else recipe.shape
        if shape[1:] != own[1:] or not shape:
            return recipe, None  # of another shape altogether, which claiming it finds
        cut, rest = cut_rows(recipe.source, recipe.layout, recipe.parts[0], shape[0])
        return replace(recipe, shape=info.shape, cuts=() if cut is None else (cut,)), rest

    def _absent(
        self, group: Sequence[Recipe], found: list[Found], others: Sequence[Way]
    ) -> Iterator[Issue]:
        """Why a parameter stays unfilled: nothing there, some parts there, a stack with gaps."""
        slot, where = group[0].slot, group[0].rule.where
        gaps = [(r, f) for r, f in zip(group, found, strict=True) if 0 < len(f) < len(r.names)]
        for recipe, infos in gaps:
            yield self._gap(recipe, infos)
        absent = [r for r, infos in zip(group, found, strict=True) if not infos]
        if not absent:
            return
        names = tuple(self.naming.on_disk(recipe.pattern) for recipe in absent)
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
        for way in others:
            more = [self.naming.on_disk(recipe.pattern) for recipe in way.recipes]
            more = [name for name in more if name not in names]
            if not more:
                continue
            places = range(len(names), len(names) + len(more))
            message += f", nor instead {', '.join(f'{{{n}}}' for n in places)}"
            names += tuple(more)
        yield Issue("missing", slot.name, message, names, where, hint)

    def _gap(self, recipe: Recipe, infos: Found) -> Issue:
        """A stack must have exactly 0..E-1; say which indices the disk holds."""
        count = len(recipe.names)
        lacking = format_indices(set(range(count)) - set(infos))
        beyond = self._stack_indices(recipe) - set(infos)
        message = (
            f"stacks {count} tensors {{0}}, numbered 0-{count - 1}; the checkpoint has "
            f"{format_indices({*infos, *beyond})} and lacks {lacking}"
        )
        names = (self.naming.on_disk(recipe.pattern),)
        return Issue("missing", recipe.slot.name, message, names, recipe.rule.where)

    def _stack_indices(self, recipe: Recipe) -> set[int]:
        """All the indices that the disk has for a stack, those past its end too."""
        form, first = blank_indices(self.naming.on_disk(recipe.names[0]))
        second = blank_indices(self.naming.on_disk(recipe.names[-1]))[1]
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


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
