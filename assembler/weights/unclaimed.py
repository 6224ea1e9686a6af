"""Tensors that no rule reads: ignored with a reason, or a finding that says why none does."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from assembler.weights.ignores import Ignore
from assembler.weights.index import TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.map_rules import Rule
from assembler.weights.naming import Naming
from assembler.weights.parameters import ModelParameters
from assembler.weights.pattern import Pattern, PatternTree
from assembler.weights.weight_map import WeightMap


@dataclass(frozen=True)
class IgnoredTensor:
    """A tensor left on disk, with the map's reason."""

    info: TensorInfo
    reason: str
    where: str | None = None  # file:line of the map's entry; None: an override left it out
    quantized: bool = False  # a half of a weight, or a scale: means nothing among plain weights


def sort_unclaimed(
    weight_map: WeightMap,
    model: ModelParameters,
    tensors: Iterable[TensorInfo],
    naming: Naming,
    misfits: Collection[str] = (),
    cut: str | None = None,
) -> tuple[list[IgnoredTensor], list[Issue]]:
    """Ignore what the map ignores, by whole name or without the prefix; report the rest, and what
    the map ignores in vain.

    A tensor whose rule does not fit its parameter (one of `misfits`) is spoken of there already.
    With `cut`, the reason why the model has fewer layers than the checkpoint, tensors that a rule
    would put into a layer beyond the last are left out for that reason.
    """
    ignored, issues = [], []
    explain = _Explainer(weight_map, model, misfits)
    alive = set()
    for info in tensors:
        bare = naming.in_map(info.name)
        ignore = _ignored_by(weight_map.ignore, info.name, bare)
        alive.add(ignore)
        reason = None if ignore is None else ignore.reason
        if reason is None:
            issue = explain.issue(info.name, bare)
            if cut is None or issue is None or not explain.is_beyond_the_last_layer(issue):
                issues.append(issue)
                continue
            reason = cut
        where = None if ignore is None else ignore.where
        ignored.append(IgnoredTensor(info, reason, where))
    dead = [i for i in weight_map.ignore if i not in alive and not i.optional]
    return ignored, [*(issue for issue in issues if issue is not None), *map(_idle, dead)]


def _ignored_by(ignores: Iterable[Ignore], *names: str) -> Ignore | None:
    for ignore in ignores:
        if any(ignore.matches(name) for name in names):
            return ignore
    return None


def _idle(ignore: Ignore) -> Issue:
    message = "leaves no tensor of this checkpoint aside"
    hint = "Mark it `optional: true` if only some checkpoints hold such a tensor."
    subject = f"ignore '{ignore.glob}'"
    return Issue("dead_rule", subject, message, (), ignore.where, hint, severity="note")


class _Explainer:
    """Finds the rule that would have read a tensor had the model been built another way."""

    def __init__(
        self, weight_map: WeightMap, model: ModelParameters, misfits: Collection[str]
    ) -> None:
        self.model, self.misfits = model, misfits
        self.tree: PatternTree[tuple[Rule, Pattern]] = PatternTree()
        for rule in weight_map.rules:
            for way in rule.ways:
                for source in way.sources:
                    self.tree.add(source.pattern, (rule, source.pattern))

    def issue(self, name: str, bare: str) -> Issue | None:
        message = "no rule uses it and no `ignore` gives a reason to leave it"
        module, _, leaf = bare.rpartition(".")
        for path, suffix in ((bare, ""), (module, leaf)):
            for rule, pattern in self.tree.find(path):
                values = pattern.match(path)
                if values is not None and set(rule.target.names) <= set(values):
                    target = rule.target.fill(values)
                    if (f"{target}.{suffix}" if suffix else target) in self.misfits:
                        return None
                    because = self._because(target, suffix, set(values) - set(rule.target.names))
                    issue = Issue("unclaimed", name, because, (target,), rule.where)
                    beyond = self.is_beyond_the_last_layer(issue)
                    return replace(issue, hint=self._too_few_layers(target)) if beyond else issue
        return Issue("unclaimed", name, message)

    def _too_few_layers(self, target: str) -> str:
        stack = target.partition(".")[0]
        count = sum(m.startswith(f"{stack}.") and m.count(".") == 1 for m in self.model.modules)
        return (
            f"The config gives the model {count} layers: correct it, or `ignore` what is beyond "
            "them with its reason."
        )

    def is_beyond_the_last_layer(self, issue: Issue) -> bool:
        """Whether there would be a place for the tensor if the model had more layers."""
        stack, _, rest = (issue.names or ("",))[0].partition(".")
        number = rest.partition(".")[0]
        return (
            number.isdecimal()
            and f"{stack}.0" in self.model.modules
            and f"{stack}.{number}" not in self.model.modules
        )

    def _because(self, target: str, leaf: str, free: set[str]) -> str:
        there = target in self.model.modules or target in self.model.slots
        if not there:
            return "its rule fills {0}, which the model does not have"
        slot = self.model.slots.get(f"{target}.{leaf}" if leaf else target)
        if slot is None and not leaf:
            return _whole_tensor(target, self.model)
        if slot is None:
            return f"its rule fills {{0}}, which the model has without '{leaf}'"
        if free:
            return f"its rule stacks into {{0}}, which holds only {slot.layout.shape[0]}"
        return "its rule fills {0} from another tensor"


def _whole_tensor(module: str, model: ModelParameters) -> str:
    """What to say of a rule whose source is a whole tensor and whose target is a module."""
    leaves = [slot.leaf for slot in model.slots.values() if slot.module == module]
    has = f" (it has {', '.join(leaves)})" if leaves else ""
    return (
        f"its rule names this one tensor for the module {{0}}{has}: leave the last part of the "
        "name out on the right, or name a parameter on the left"
    )
