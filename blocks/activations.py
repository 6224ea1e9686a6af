"""Activation functions, by the names that model configs use, and activations that own tensors.

The names are those of transformers' `ACT2FN` table. The variants of GELU that only spell the same
tanh formula differently (`gelu_new`, `gelu_fast`, `gelu_accurate`, `gelu_python_tanh`) share
torch's one fused kernel: equal to rounding and several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import BeforeValidator
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part, ShardDim
from assembler.blocks.roles import BlockRole
from assembler.errors import SpecError, did_you_mean

TensorFunction: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

ActivationName: TypeAlias = Literal[
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
]

_LEARNED = ("prelu", "xielu")


def _refuse_learned(name: Any) -> Any:
    """Say why an activation that transformers knows is not in the list."""
    if name in _LEARNED:
        raise SpecError(
            f"activation '{name}' owns learned tensors, so it is a block and no name"
            + (": activation: {block: XIELU}" if name == "xielu" else ", and there is none yet")
        )
    return name


Activation: TypeAlias = Annotated[ActivationName, BeforeValidator(_refuse_learned)]
"""A field that holds the name of an activation."""

AnyActivation: TypeAlias = Activation | Annotated[Any, BlockRole("activation")]
"""A field that holds the name of an activation or a block, e.g. `{block: XIELU}`."""


def linear(x: torch.Tensor) -> torch.Tensor:
    """x itself."""
    return x


def gelu_10(x: torch.Tensor) -> torch.Tensor:
    """GELU clipped to [-10, 10] (Wu et al., 2020), made for 8-bit inference."""
    return F.gelu(x).clamp(-10.0, 10.0)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), the rough GELU of Hendrycks and Gimpel (2016)."""
    return x * torch.sigmoid(1.702 * x)


def laplace(x: torch.Tensor) -> torch.Tensor:
    """The Laplace function of MEGA (Ma et al., 2022): a bounded, smooth stand-in for relu2."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def relu2(x: torch.Tensor) -> torch.Tensor:
    """relu(x)² (Primer, So et al., 2021)."""
    return F.relu(x).square()


def sqrtsoftplus(x: torch.Tensor) -> torch.Tensor:
    """sqrt(softplus(x))."""
    return F.softplus(x).sqrt()


_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: Mapping[str, TensorFunction] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_10": gelu_10,
        "gelu_accurate": _gelu_tanh,
        "gelu_fast": _gelu_tanh,
        "gelu_new": _gelu_tanh,
        "gelu_python": F.gelu,
        "gelu_python_tanh": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "hardswish": F.hardswish,
        "laplace": laplace,
        "leaky_relu": F.leaky_relu,
        "linear": linear,
        "mish": F.mish,
        "quick_gelu": quick_gelu,
        "relu": F.relu,
        "relu2": relu2,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "sqrtsoftplus": sqrtsoftplus,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
)


def activation(name: str) -> TensorFunction:
    """The function called `name`; raises `SpecError` for one that is unknown or not a function."""
    if name not in ACTIVATIONS:
        _refuse_learned(name)
        raise SpecError(f"unknown activation '{name}'.{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def make_activation(ctx: BuildContext, spec: Any, part: Part) -> TensorFunction:
    """The function or the block that an `AnyActivation` field holds, for the stream `part`."""
    return activation(spec) if isinstance(spec, str) else ctx.child(spec, "act", part=part)


class XIELU(nn.Module):
    """xIELU, an activation with learned slopes (Huang and Schlag, 2024; Apertus).

    For x > 0 it is p x² + beta x, else n (e^min(x, eps) - 1 - x) + beta x, where p = softplus(
    alpha_p) and n = beta + softplus(alpha_n). Checkpoints hold beta and eps too, which stay as they
    are in training.
    """

    role: ClassVar[str] = "activation"

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(()), requires_grad=False)
        self.eps = nn.Parameter(torch.empty(()), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[...] -> [...], number by number."""
        positive = F.softplus(self.alpha_p) * x * x
        slope = self.beta + F.softplus(self.alpha_n)
        negative = (torch.expm1(torch.min(x, self.eps)) - x) * slope
        return torch.where(x > 0, positive, negative) + self.beta * x

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it."""
        return {
            leaf: ShardDim("replicated", tuple(value.shape))
            for leaf, value in self._parameters.items()
        }
