"""Where blocks compute in the fused Triton kernels and where in plain torch: the rule they all ask.

The compiler's rewrites bring operations together (a residual sum and the norm behind it) and blocks
name what they compute; whether one Triton kernel then does it all is a question of the device:

- CUDA and HIP devices take the fused kernels, where Triton is installed and nothing needs a
  gradient (they have no backward);
- everything else takes plain torch, bit for bit as it was.

The environment variable `ASSEMBLER_FUSED_KERNELS` says otherwise: "never" for plain torch
everywhere, "always" for the fused kernels on a CPU too, in Triton's interpreter (with
`TRITON_INTERPRET=1`; slow, and made for tests). It is read when it is first asked for, a model's
assembling at the latest, and holds for the process.

Norms, heads, gates, embeddings, routers, experts and the engine's sampler ask here. Attention over
pages does not: its backend is an option of the engine (`dispatch`).
"""

from __future__ import annotations

import os
from functools import cache
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


@cache
def read_choice() -> str:
    """What the environment asked for when this was first called."""
    return chosen_by(dict(os.environ))


def fused_choice() -> str:
    """What holds for this process, one of `CHOICES`; raises `OptionError` as `chosen_by` does."""
    return read_choice()


# What torch.compiler.assume_constant_result does, which imports the compiler: a second of each
# start.
fused_choice._dynamo_marked_constant = True

INSTALLED = find_spec("triton") is not None


def runs_fused(
    first: torch.Tensor,
    *others: torch.Tensor | None,
    beside: tuple[torch.Tensor | None, ...] = (),
) -> bool:
    """Whether a fused kernel takes these tensors (None is skipped), all on the first one's device.

    They must be of one dtype, one of `DTYPES`: what mixes dtypes promotes them, which is torch's.
    Tensors `beside` them are of dtypes that the caller looks after.
    """
    device = first.device.type
    if device not in ("cuda", "cpu"):
        return False
    choice = fused_choice()
    if choice == "never" or (device == "cpu" and choice != "always"):
        return False
    if not INSTALLED or first.dtype not in DTYPES:
        return False
    if any(tensor is not None and tensor.dtype != first.dtype for tensor in others):
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(t is not None and t.requires_grad for t in (first, *others, *beside))


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., width] -> [N, width], the rows at any stride; no copy where it can be a view."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()
