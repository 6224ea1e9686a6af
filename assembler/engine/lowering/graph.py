"""The walk over a model's graphs, with places in the workspace in the role of tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from assembler.blocks.functions import sigmoid, softcap, tanh
from assembler.engine.kv_cache import KVCache
from assembler.engine.lowering import attention, blocks, experts, latent_attention
from assembler.engine.lowering.program import NotLowered, Program, Tokens, Value
from assembler.engine.lowering.wanted_rows import keep_wanted_rows
from assembler.kernels.cpu_program import ACTIVATIONS, LOGITS, Opcode

_RULES = MappingProxyType(
    {**blocks.RULES, **attention.RULES, **latent_attention.RULES, **experts.RULES}
)
_ACTIVATING: Mapping[Any, int] = MappingProxyType(
    {sigmoid: ACTIVATIONS["sigmoid"], tanh: ACTIVATIONS["tanh"]}
)
_CONTEXT = object()  # what the graphs pass around as ctx


def lower(
    model: nn.Module, caches: Sequence[KVCache], max_rows: int, dtype: torch.dtype
) -> Program:
    """The program of a model over its caches.

    Raises:
        NotLowered: the model has a part that neither an instruction nor torch between two of them
            can do.
    """
    if not isinstance(model, fx.GraphModule) or getattr(model.tp, "size", 1) > 1:
        raise NotLowered("it is no graph of blocks on one rank")
    _refuse_hooks_elsewhere(model)
    program = Program(max_rows, dtype, caches, _RULES)
    result = _Walk(model, program).run(Tokens(), _CONTEXT)
    if not (isinstance(result, Value) and result.place == LOGITS):
        raise NotLowered("it does not end in a head")
    keep_wanted_rows(program)
    program.join_chains()
    return program


def _refuse_hooks_elsewhere(model: fx.GraphModule) -> None:
    """A block with hooks runs in torch; hooks within one, or around several, would be lost."""
    for name, module in model.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        parent = model.get_submodule(name.rpartition(".")[0])
        is_block = isinstance(parent, fx.GraphModule) and module is not model.layers
        if hooks and (not is_block or isinstance(module, fx.GraphModule)):
            raise NotLowered(f"{name or 'the model'}, which has hooks")


class _Walk(fx.Interpreter):
    """Runs a graph, and writes down what it would have done."""

    def __init__(self, module: fx.GraphModule, program: Program) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.extra_traceback = False  # in errors that only say what has no instruction
        self.program = program

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Value) and result.place == LOGITS and len(n.users) > 1:
            raise NotLowered("logits are used twice, and there is one place for them")
        return result

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        block = self.fetch_attr(target)
        if target == "layers":
            return self._layers(block, args)
        return self.program.lower(block, *(a for a in args if a is not _CONTEXT))

    def _layers(self, layers: nn.Module, args: tuple) -> Any:
        state = args[:-1]
        for layer in layers:
            out = _Walk(layer, self.program).run(*state, _CONTEXT)
            state = out if isinstance(out, tuple) else (out,)
        return out

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        values = [a for a in args if isinstance(a, Value)]
        if target is operator.getitem or not values:
            return target(*args)
        widest = max(values, key=lambda value: value.width)
        out = widest if widest.place == LOGITS else self.program.value(widest.width)
        written = (
            self._of_two(target, values, out)
            if len(values) > 1
            else self._of_one(target, args, out)
        )
        if written:
            return out
        name = getattr(target, "__name__", str(target))
        return self.program.call_torch(name, target, args, (out,), "no instruction")

    def _of_two(self, target: Any, values: list[Value], out: Value) -> bool:
        """Whether there is an instruction for a function of two streams."""
        first, second = values
        if target is operator.add and first.width == second.width:
            self.program.add(Opcode.ADD, first, out, input2=second.place)
            return True
        wide, narrow = sorted(values, key=lambda value: -value.width)
        if target is operator.mul and narrow.width in (1, wide.width):
            shared = wide.width // narrow.width
            self.program.add(Opcode.MULTIPLY, wide, out, input2=narrow.place, shared=shared)
            return True
        return False

    def _of_one(self, target: Any, args: tuple, out: Value) -> bool:
        """Whether there is an instruction for a function of one stream and a number or none."""
        x = next(a for a in args if isinstance(a, Value))
        number = next((a for a in args if not isinstance(a, Value)), None)
        add = self.program.add
        if target is operator.mul:
            add(Opcode.SCALE, x, out, scalar=number)
        elif target is operator.neg:
            add(Opcode.SCALE, x, out, scalar=-1.0)
        elif target is operator.truediv and args[0] is x:
            add(Opcode.SCALE, x, out, scalar=number, kind=1)
        elif target is softcap:
            add(Opcode.SOFTCAP, x, out, scalar=number)
        elif target in _ACTIVATING:
            add(Opcode.ACTIVATE, x, out, kind=_ACTIVATING[target])
        else:
            return False
        return True
