"""The activation functions of gates, for Triton's kernels: each in float32, by its config name.

The formulas are torch's. `tl` has neither tanh nor log1p: both are made of what there is without
losing the digits of small numbers.
"""

from __future__ import annotations

from types import MappingProxyType

import triton
import triton.language as tl

_GELU_TANH = ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh")
_SAME_NAME = (
    "gelu",
    "gelu_10",
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
    "softplus",
    "sqrtsoftplus",
    "tanh",
)
KNOWN_ACTIVATIONS = MappingProxyType(
    {
        **{name: name for name in _SAME_NAME},
        "gelu_python": "gelu",
        "swish": "silu",
        **dict.fromkeys(_GELU_TANH, "gelu_tanh"),
    }
)
"""What `activate` calls them, by their names in configs (and softplus, which output gates take)."""


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of x (float32); ACTIVATION is one of the values of `KNOWN_ACTIVATIONS`."""
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_10":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
        y = tl.minimum(tl.maximum(y, -10.0, _NAN), 10.0, _NAN)
    elif ACTIVATION == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "relu":
        y = _relu(x)
    elif ACTIVATION == "relu2":
        y = _relu(x) * _relu(x)
    elif ACTIVATION == "relu6":
        y = tl.minimum(_relu(x), 6.0, _NAN)
    elif ACTIVATION == "leaky_relu":
        y = tl.where(x > 0, x, 0.01 * x)
    elif ACTIVATION == "hardswish":
        y = x * tl.minimum(_relu(x + 3.0), 6.0, _NAN) / 6.0
    elif ACTIVATION == "laplace":
        y = 0.5 * (1.0 + tl.erf((x - 0.707107) / 0.3989423785321934))
    elif ACTIVATION == "mish":
        y = x * _tanh(_softplus(x))
    else:
        y = _squash(x, ACTIVATION)
    return y


@triton.jit
def _squash(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "sigmoid":
        y = tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        y = _tanh(x)
    elif ACTIVATION == "softplus":
        y = _softplus(x)
    elif ACTIVATION == "sqrtsoftplus":
        y = tl.sqrt(_softplus(x))
    else:
        tl.static_assert(ACTIVATION == "linear")
        y = x
    return y


_NAN = tl.constexpr(tl.PropagateNan.ALL)  # min and max pass NaN on, as torch's do


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, _NAN)


@triton.jit
def _tanh(x):
    # 2 sigmoid(2x) - 1 cancels near 0, where the series has all digits.
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.15, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def _softplus(x):
    # max(x, 0) + log1p(e^-|x|); the rounding error of 1 + t is divided out of log(1 + t).
    t = tl.exp(-tl.abs(x))
    u = 1.0 + t
    log1p = tl.where(u == 1.0, t, tl.log(u) * t / tl.where(u == 1.0, 1.0, u - 1.0))
    return _relu(x) + log1p
