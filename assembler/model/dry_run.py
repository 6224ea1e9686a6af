"""Runs a model's graphs on the meta device, to name the equation that cannot be computed.

That takes a second the first time, most of it torch's own imports, so it is done when a model has
failed, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from assembler.blocks.context import ForwardContext
from assembler.errors import AssemblerError, WiringError
from assembler.model.build import build_model
from assembler.model.layer_stack import LayerStack
from assembler.model.places import located_wiring
from assembler.model.spec import ModelSpec

_TOKENS = 2


@contextmanager
def blaming_equations(spec: ModelSpec) -> Iterator[None]:
    """Around a run of a model: where torch refuses shapes, the equation is named if it is to blame.

    Raises:
        WiringError: in place of torch's error, which is its cause.
    """
    try:
        yield
    except RuntimeError:
        check_equations(build_model(spec, rewrites="none"), spec)
        raise


@torch.no_grad()
def check_equations(model: fx.GraphModule, spec: ModelSpec) -> None:
    """Run two tokens through a model on the meta device, and the first layer of each kind.

    Raises:
        WiringError: an equation that cannot be computed, with its file and line.
    """
    ids = torch.empty(1, _TOKENS, dtype=torch.int64, device="meta")
    logits = _Located(model, spec).run(ids, ForwardContext.dense(_TOKENS, "meta"))
    wanted = (1, _TOKENS, spec.vocab_size)
    if tuple(logits.shape) != wanted:
        lines, places = located_wiring(spec, None)
        raise WiringError(
            f"{places[-1]}: '{lines[-1]}' gives logits of width {logits.shape[-1]}, and the "
            f"vocabulary has {spec.vocab_size}"
        )


class _Located(fx.Interpreter):
    """Says at which equation a graph fails."""

    def __init__(self, module: fx.GraphModule, spec: ModelSpec) -> None:
        super().__init__(module)
        self.extra_traceback = False  # the equation's line says it better
        self.spec = spec

    def run_node(self, node: fx.Node) -> Any:
        try:
            return super().run_node(node)
        except AssemblerError:
            raise
        except Exception as error:  # of any type: it is torch's
            where = node.meta.get("where", self.spec.name)
            reason = next(iter(str(error).splitlines()), "")
            called = f"{node.target}: " if node.op == "call_module" else ""
            message = f"{where}: this equation cannot be computed: {called}{reason}"
            raise WiringError(message) from error

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, LayerStack):
            return super().call_module(target, args, kwargs)
        *state, ctx = args
        for index in self._unlike_layers():
            out = _Located(module[index], self.spec).run(*state, ctx)
            state = out if isinstance(out, tuple) else (out,)
        return out

    def _unlike_layers(self) -> list[int]:
        """The first layer of each kind."""
        kinds = self.spec.layer_kinds
        return sorted({kinds.index(kind) for kind in kinds})
