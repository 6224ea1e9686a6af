"""From an assembled model, which has no weights yet, to what is shown of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import fx, nn

from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError
from assembler.loading import Assembly
from assembler.model.build import build_model
from assembler.model.names import LAYERS, LOGITS
from assembler.model.places import block_places, located_wiring
from assembler.model.registry import BlockSpec, default_registry, summary
from assembler.model.spec import ModelSpec
from assembler.showing.diagram import read_diagram
from assembler.showing.facts import all_fields, short_facts
from assembler.showing.links import find_links
from assembler.showing.names import LAYER, layers_text, split_layer
from assembler.showing.view import PARTS, BlockView, Checkpoint, ModelView, SectionView, WeightView
from assembler.weights.fold import fold_names
from assembler.weights.map_rules import Rule
from assembler.weights.parameters import ParameterSlot, read_parameters
from assembler.weights.plan import LoadPlan
from assembler.weights.report import covered
from assembler.weights.write_back import RuleLookup

_ROLES_OF_THEIR_OWN = ("experts", "router")  # inside a block of another role


def view_model(assembly: Assembly, tp_size: int = 1) -> ModelView:
    """Gather what is shown of a model that was assembled without rewrites.

    Args:
        assembly: the whole model; with a plan, its parameters are linked to tensors on disk.
        tp_size: the number of tensor-parallel ranks whose shares are shown.
    """
    spec, refused, ranks = assembly.spec, "", [TensorParallel()]
    one_rank: nn.Module = assembly.model
    if tp_size > 1:
        try:
            one_rank = build_model(spec, TensorParallel(0, tp_size))
            ranks = [TensorParallel(rank, tp_size) for rank in range(tp_size)]
        except SpecError as error:
            refused = str(error)
    gatherer = _Gatherer(assembly, ranks)
    return ModelView(
        title=_title(assembly),
        conf=Path(spec.name).stem,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_length=spec.max_length,
        layer_kinds=spec.layer_kinds,
        model=gatherer.section(None),
        kinds=tuple(gatherer.section(kind) for kind in dict.fromkeys(spec.layer_kinds)),
        active=_active(assembly.model),
        cache_values=_cache_values(one_rank),
        checkpoint=None if assembly.plan is None else _checkpoint(assembly.plan),
        tp_size=tp_size,
        refused=refused,
        rank_numels=tuple(gatherer.rank_numel(rank) for rank in ranks),
    )


class _Gatherer:
    """Reads the modules, the parameters and the plan of one model, section by section."""

    def __init__(self, assembly: Assembly, ranks: Sequence[TensorParallel]) -> None:
        self.spec: ModelSpec = assembly.spec
        self.model: fx.GraphModule = assembly.model
        self.ranks = ranks
        self.slots = read_parameters(assembly.model).slots
        self.modules = dict(assembly.model.named_modules())
        self.links = {} if assembly.plan is None else find_links(assembly.plan)
        self.notes = {} if assembly.plan is None else _notes(assembly.plan)
        self.rules = None if assembly.weight_map is None else RuleLookup(assembly.weight_map)

    def section(self, kind: str | None) -> SectionView:
        """A kind of layer, as its first layer is; None: the model around the layers."""
        layers = [n for n, name in enumerate(self.spec.layer_kinds) if name == kind]
        entries = self.spec.blocks if kind is None else self.spec.kinds[kind].blocks
        graph = self.model.graph if kind is None else self.model.layers[layers[0]].graph
        outputs = (LOGITS,) if kind is None else self.spec.streams
        lines, places = located_wiring(self.spec, kind)
        numbers = {
            str(node.target): [float(getattr(self.model.layers[n], node.target)) for n in layers]
            for node in graph.nodes
            if node.op == "get_attr"
        }
        diagram = read_diagram(graph, outputs, numbers)
        called = dict.fromkeys(n.label for n in diagram.nodes if n.kind == "block")
        return SectionView(
            kind=kind,
            layers=tuple(layers),
            wiring=tuple(zip(lines, places, strict=True)),
            blocks=tuple(self._block(kind, layers, name, entries[name]) for name in called),
            diagram=diagram,
        )

    def _block(
        self, kind: str | None, layers: Sequence[int], name: str, entry: BlockSpec
    ) -> BlockView:
        path = name if kind is None else f"{LAYERS}.{LAYER}.{name}"
        here = name if kind is None else f"{LAYERS}.{layers[0]}.{name}"
        of_block = [slot for slot in self.slots.values() if f"{slot.name}.".startswith(f"{here}.")]
        weights = tuple(self._weight(slot, here, layers) for slot in of_block)
        shares = {weight.share for weight in weights} & set(_ROLES_OF_THEIR_OWN)
        return BlockView(
            name=name,
            path=path,
            block=entry.block,
            part="experts" if shares else _part(self.modules[here]),
            summary=summary(default_registry().block_class(entry.block)),
            facts=short_facts(entry),
            fields=all_fields(entry),
            where=block_places(self.spec, kind, name)[0],
            weights=weights,
        )

    def _weight(self, slot: ParameterSlot, block: str, layers: Sequence[int]) -> WeightView:
        parameter, _ = split_layer(slot.name)
        links = self.links.get(parameter, ())
        if layers:
            links = tuple(filter(None, (link.within(set(layers)) for link in links)))
        shapes = [slot.local_shape(rank) for rank in self.ranks]
        rule = self._rule(slot)
        fused = [(part.name, part.size) for part in slot.layout.parts]
        return WeightView(
            name=slot.name.removeprefix(f"{block}."),
            parameter=parameter,
            shape=slot.layout.shape,
            fused=tuple(fused) if len(fused) > 1 else (),
            split="" if slot.layout.kind == "replicated" else slot.layout.kind,
            share=self._share(slot),
            rank_shapes=tuple(shapes) if len(shapes) > 1 else (),
            tied_to=slot.tied_to,
            rule=str(rule) if rule else "",
            rule_at=rule.where if rule else "",
            links=links,
            notes=self.notes.get(parameter, ()),
        )

    def _rule(self, slot: ParameterSlot) -> Rule | None:
        """The rule that fills a parameter."""
        rules = [] if self.rules is None or slot.tied_to else self.rules.all(slot.name)
        return rules[0] if rules else None

    def _share(self, slot: ParameterSlot) -> str:
        """What a parameter counts as: its block's part, but experts and routers by themselves."""
        paths = slot.module.split(".")
        inside = [self.modules[".".join(paths[: n + 1])] for n in range(len(paths))]
        own = [m.role for m in inside if getattr(m, "role", None) in _ROLES_OF_THEIR_OWN]
        return own[0] if own else _part(inside[2 if paths[0] == LAYERS else 0])

    def rank_numel(self, rank: TensorParallel) -> int:
        """The parameters that a rank holds."""
        own = (slot for slot in self.slots.values() if slot.tied_to is None)
        return sum(math.prod(slot.local_shape(rank)) for slot in own)


def _part(block: nn.Module) -> str:
    role = getattr(block, "role", None)
    return role if role in PARTS else "other"


def _title(assembly: Assembly) -> str:
    """The name of the checkpoint's folder or file, or its id on the Hub."""
    path = assembly.path
    if assembly.index is not None and assembly.index.remote:
        return str(path)
    path = path.expanduser().resolve()
    return path.parent.name if path.name == "config.json" else path.name


def _active(model: fx.GraphModule) -> int:
    """The parameters that one token uses: of the experts, those that it is sent to."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for path, entry in _mixtures(model):
        idle = 1 - entry.top_k / entry.num_experts
        experts = model.get_submodule(f"{path}.experts")
        total -= round(sum(p.numel() for p in experts.parameters()) * idle)
    return total


def _mixtures(model: fx.GraphModule) -> list[tuple[str, BlockSpec]]:
    """(path, settings) of every block of which a token uses a part."""
    spec: ModelSpec = model.spec
    entries = {
        f"{LAYERS}.{n}.{name}": entry
        for n, kind in enumerate(spec.layer_kinds)
        for name, entry in spec.kinds[kind].blocks.items()
    }
    entries |= dict(spec.blocks)
    fields = {"num_experts", "top_k", "experts"}
    return [(path, e) for path, e in entries.items() if fields <= type(e).model_fields.keys()]


def _cache_values(model: nn.Module) -> int:
    """Numbers that the KV cache of one rank keeps for a token."""
    specs = [module.cache_spec() for module in model.modules() if hasattr(module, "cache_spec")]
    return sum(s.num_kv_heads * (s.head_dim + s.stored_value_dim) for s in specs)


def _notes(plan: LoadPlan) -> Mapping[str, tuple[str, ...]]:
    """What links do not tell of a parameter: constants, types it keeps, tensors it must equal."""
    notes: dict[str, dict[str, list[int]]] = {}

    def note(target: str, text: str) -> None:
        parameter, layer = split_layer(target)
        layers = notes.setdefault(parameter, {}).setdefault(text, [])
        layers += [] if layer is None else [layer]

    for constant in plan.constants:
        place = "".join(f"rows {s.start}:{s.stop} " for s in constant.target_slice)
        note(constant.target, f"{place}= {constant.value:g}, which no tensor gives")
    for name, dtype in plan.dtypes.items():
        note(name, f"kept in {dtype}")
    for tie in plan.ties:
        note(tie.target, f"{tie.source} is on disk too: loading sees that it equals {tie.twin}")
    return {
        parameter: tuple(
            f"layers {layers_text(layers)}: {text}" if layers else text
            for text, layers in texts.items()
        )
        for parameter, texts in notes.items()
    }


def _checkpoint(plan: LoadPlan) -> Checkpoint:
    by_reason: dict[str, list[str]] = {}
    for item in plan.ignored:
        by_reason.setdefault(item.reason, []).append(item.info.name)
    return Checkpoint(
        nbytes=plan.totals.nbytes,
        tensors=plan.totals.tensors,
        covered=covered(plan.totals),
        complete=not plan.errors,
        ignored=tuple(
            (tuple(fold.text for fold in fold_names(names)), reason)
            for reason, names in by_reason.items()
        ),
        findings=tuple(map(str, plan.findings)),
        weight_map=plan.map_name,
    )
