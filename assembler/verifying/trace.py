"""What modules were given and gave in one forward pass, recorded by hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class ModuleCall:
    """The tensors of a module's first call."""

    inputs: tuple[torch.Tensor, ...]  # positional ones first
    outputs: tuple[torch.Tensor, ...] = ()

    @property
    def streams(self) -> tuple[torch.Tensor, ...]:
        """The inputs that hold activations."""
        return tuple(tensor for tensor in self.inputs if tensor.is_floating_point())


@contextmanager
def recorded(model: nn.Module, paths: Iterable[str]) -> Iterator[Mapping[str, ModuleCall]]:
    """Within, forward passes fill the mapping with calls of `paths`, in the order they begin."""
    calls: dict[str, ModuleCall] = {}
    with ExitStack() as hooks:
        for path in dict.fromkeys(paths):
            module = model.get_submodule(path)
            before = module.register_forward_pre_hook(_before(calls, path), with_kwargs=True)
            hooks.callback(before.remove)
            hooks.callback(module.register_forward_hook(_after(calls, path)).remove)
        yield calls


def _before(calls: dict[str, ModuleCall], path: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in calls:
            calls[path] = ModuleCall(_tensors((*args, *kwargs.values())))

    return hook


def _after(calls: dict[str, ModuleCall], path: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not calls[path].outputs:
            outputs = output if isinstance(output, tuple | list) else (output,)
            calls[path].outputs = _tensors(outputs)

    return hook


def _tensors(values: Iterable[Any]) -> tuple[torch.Tensor, ...]:
    """Copies of the tensors among `values`: a later module may change them in place."""
    return tuple(value.detach().clone() for value in values if isinstance(value, torch.Tensor))
