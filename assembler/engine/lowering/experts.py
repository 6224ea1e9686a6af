"""Rules for mixtures of experts: the tokens of each expert are brought side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from assembler.blocks.experts import ExpertLinear, GatedExperts
from assembler.blocks.moe import MoE
from assembler.blocks.router import Router, SparseMixerRouter
from assembler.engine.lowering.blocks import activation_kind, limited_gate, refuse
from assembler.engine.lowering.program import Program, Value, expect_width
from assembler.kernels.cpu_program import Epilogue, Opcode, RouterKind, RoutingFields

_INDEX_BYTES = 4  # of the slots' numbers


def _moe(program: Program, block: MoE, x: Value) -> Value:
    router, experts = block.router, block.experts
    refuse(**{type(router).__name__: type(router) not in (Router, SparseMixerRouter)})
    refuse(**{type(experts).__name__: type(experts) is not GatedExperts})
    routing = _routing(program, router, block.weigh_input)
    choices = _choose(program, router, routing, x)
    slots = program.max_rows * routing.top_k
    groups = program.room((2 * routing.experts + 2 + 2 * slots) * _INDEX_BYTES)
    program.add(Opcode.GROUP_BY_EXPERT, choices, groups, routing=routing)
    # GATHER and COMBINE read the choices, although they stand where others write.
    sorting = {"input2": groups.place, "out2": choices.place, "routing": routing}
    inner = program.add(Opcode.GATHER, x, program.value(x.width, routing.top_k), **sorting)
    gating, width = experts.gating, experts.down.weight.shape[2]
    if gating.limit is None and not gating.up_offset:
        gated = {"kind": Epilogue.GATED, "offset": activation_kind(gating.name)}
        inner = _linear(program, experts.gate_up, inner, width, sorting | gated)
    else:
        both = _linear(program, experts.gate_up, inner, 2 * width, sorting)
        inner = limited_gate(program, both, gating.name, gating.limit, gating.up_offset)
        del both
    inner = _linear(program, experts.down, inner, x.width, sorting)
    return program.add(Opcode.COMBINE, inner, program.value(inner.width), **sorting)


def _routing(program: Program, router: nn.Module, weigh_input: bool) -> RoutingFields:
    size = router.routing
    fields: dict[str, Any] = {"experts": size.num_experts, "top_k": size.top_k}
    fields["weigh_input"] = int(weigh_input)
    if type(router) is SparseMixerRouter:
        kind = RouterKind.SPARSE_MIXER
        return RoutingFields(kind=kind, jitter=router.jitter_eps, scale=1.0, **fields)
    groups = router.groups
    if groups is not None:
        fields |= {"groups": groups.count, "top_groups": groups.top}
        fields["best_two"] = int(groups.score == "top2")
    return RoutingFields(
        kind=RouterKind.SOFTMAX if router.softmax else RouterKind.SIGMOID,
        normalise=int(router.normalise),
        min_sum=router.min_sum,
        scale=router.scale,
        selection_bias=program.as_float(router.selection_bias),
        **fields,
    )


def _choose(program: Program, router: nn.Module, routing: RoutingFields, x: Value) -> Value:
    """What each token's experts count, and which they are."""
    expect_width(x, router.weight.shape[1])
    bias, widen = getattr(router, "bias", None), getattr(router, "widen", False)
    fields = {"weight": program.address(router.weight), "bias": program.address(bias)}
    scores = program.floats(2 * routing.experts)  # half of it for what they are chosen by
    fields |= {"n": routing.experts, "kind": int(not widen)}
    program.add(Opcode.SCORE_EXPERTS, x, scores, **fields)
    choices = program.floats(2 * routing.top_k)
    return program.add(Opcode.CHOOSE_EXPERTS, scores, choices, routing=routing)


def _linear(
    program: Program, experts: ExpertLinear, x: Value, width: int, fields: dict[str, Any]
) -> Value:
    """Append a linear layer of every expert that has rows of x."""
    expect_width(x, experts.weight.shape[2])
    weight, bias = program.address(experts.weight), program.address(experts.bias)
    out = program.value(width, x.times)
    return program.add(Opcode.EXPERT_LINEAR, x, out, weight=weight, bias=bias, **fields)


RULES: Mapping[type[nn.Module], Callable[..., Any]] = MappingProxyType({MoE: _moe})
