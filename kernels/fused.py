"""Where the fused kernels run: the one place that chooses between them and plain torch.

The compiler's rewrites bring operations together (a residual sum and the norm behind it) and blocks
name what they compute; whether one Triton kernel then does it all is a question of the device:

- CUDA and HIP devices take the fused kernels, where Triton is installed and nothing needs a
  gradient (they have no backward);
- everything else takes plain torch, bit for bit as it was.

The environment variable `ASSEMBLER_FUSED_KERNELS`, read at the start, says otherwise: "never" for
plain torch everywhere, "always" for the fused kernels on a CPU too, in Triton's interpreter (with
`TRITON_INTERPRET=1`; slow, and made for tests).
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from assembler.errors import OptionError, did_you_mean

VARIABLE = "ASSEMBLER_FUSED_KERNELS"
CHOICES = ("auto", "never", "always")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_WIDTH = 32768
"""The widest row that a kernel keeps in registers."""


def chosen_by(environment: dict[str, str]) -> str:
    """Which of `CHOICES` the environment asks for; raises `OptionError` for anything else."""
    choice = environment.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise OptionError(
            f"{VARIABLE}={choice} is none of {', '.join(CHOICES)}.{did_you_mean(choice, CHOICES)}"
        )
    if choice == "always" and environment.get("TRITON_INTERPRET") != "1":
        raise OptionError(
            f"{VARIABLE}=always runs Triton's kernels on a CPU, in its interpreter: set "
            "TRITON_INTERPRET=1 as well, or leave the choice to the device (auto)."
        )
    return choice


# Constants of the process, as Triton's own choice between compiler and interpreter is.
CHOICE = chosen_by(dict(os.environ))
INSTALLED = find_spec("triton") is not None


def runs_fused(first: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether a fused kernel takes these tensors (None is skipped), all on the first one's device.

    They must be of one dtype, one of `DTYPES`: what mixes dtypes promotes them, which is torch's.
    """
    device = first.device.type
    if device != "cuda" and (CHOICE != "always" or device != "cpu"):
        return False
    if CHOICE == "never" or not INSTALLED or first.dtype not in DTYPES:
        return False
    needs_gradient = torch.is_grad_enabled()
    for tensor in (first, *others):
        if tensor is None:
            continue
        if tensor.dtype != first.dtype or (needs_gradient and tensor.requires_grad):
            return False
    return True


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., width] -> [N, width], the rows at any stride; no copy where it can be a view."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()
