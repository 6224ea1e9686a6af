"""Kernels as operations of torch that a trace can hold, launched at once where nobody traces.

A custom operation with a fake implementation is one node to torch.compile, torch.export, fx and
fake tensors. But a call through torch's dispatcher keeps the host some 30 µs longer, for each
kernel of each layer, and buys nothing where nobody looks on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether somebody other than the device looks at what is done to `tensor`.

    A compiler or an export, a dispatch mode (fake tensors, `make_fx`, counters of operations), or a
    tensor that is none of torch's own.
    """
    if torch.compiler.is_compiling():
        return True
    return is_in_torch_dispatch_mode() or type(tensor) is not torch.Tensor


def operation(
    name: str, mutates_args: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a launcher, whose first argument is a tensor, as `torch.ops.<name>`.

    What takes its place goes through the operation where that tensor is traced and launches
    elsewhere; its `register_fake` is the operation's. Types and `mutates_args` as
    `torch.library.custom_op` wants them.
    """

    def register(launch: Callable[..., Any]) -> Callable[..., Any]:
        registered = torch.library.custom_op(name, launch, mutates_args=mutates_args)

        @wraps(launch)
        def run(first: torch.Tensor, *others: Any, **named: Any) -> Any:
            return (registered if is_traced(first) else launch)(first, *others, **named)

        run.register_fake = registered.register_fake
        return run

    return register
