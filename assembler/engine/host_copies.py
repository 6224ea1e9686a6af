"""Numbers of the host as tensors of the device, without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`values` (numbers, or rows of them) on `device`.

    A GPU copies them in its turn while the host goes on. From memory that is not pinned it would
    be a copy that waits for everything the device has been given before.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
