"""The tensors that live while code runs on the meta device: how much memory it would take."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make inside the `with` block.

    A storage counts from the operator that made it to the moment nobody holds it: views are free,
    and what Python lets go of is given back, as a caching allocator does. What an operator uses
    and gives back by itself (workspaces of a matrix product) is not seen.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        """`known` tensors (parameters, caches) were there before and are not counted."""
        super().__init__()
        self.now = 0  # bytes
        self.peak = 0  # bytes
        self._seen = {_storage_key(tensor) for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        key = _storage_key(tensor)
        if key in self._seen:
            return
        self._seen.add(key)
        storage = tensor.untyped_storage()
        nbytes = storage.nbytes()
        self.now += nbytes
        weakref.finalize(storage, self._free, key, nbytes)

    def _free(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


def _storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
