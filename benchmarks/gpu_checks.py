"""Every kernel against its torch reference, on the device; the reference computes in float64.

A check gives the largest error and the largest one that rounding explains. Each is a few kernels to
compile, seconds each, so that here the forms of a kernel are met once: what they are crossed with,
shapes and options, runs in the interpreter's tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_attention_checks import attention_checks, flash_checks
from gpu_errors import Check
from gpu_expert_checks import expert_checks
from gpu_head_checks import head_checks
from gpu_row_checks import row_checks
from gpu_sampling_checks import sampling_checks


def checks(device: torch.device, smoke: bool) -> Iterator[Check]:
    """All of them; a smoke run takes small shapes and one dtype, with all forms."""
    for dtype in [torch.float32] if smoke else [torch.bfloat16, torch.float16, torch.float32]:
        all_forms = smoke or dtype == torch.bfloat16
        yield from attention_checks(device, dtype, smoke, all_forms)
        yield from flash_checks(device, dtype)
        yield from row_checks(device, dtype, smoke, all_forms)
        yield from head_checks(device, dtype, smoke, all_forms)
        yield from expert_checks(device, dtype, smoke, all_forms)
    yield from sampling_checks(device, smoke)
