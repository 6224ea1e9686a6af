"""Programs for the CPU kernels: the instructions of cpu/program.cpp and the call that runs them."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch

from assembler.kernels.cpu_library import cpu_library, thread_team

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float

LOGITS = -1  # the place of the result, which is outside of the workspace
NOTHING = -2


class Opcode(IntEnum):
    """What an instruction does to each row; the order is that of cpu/program.cpp."""

    EMBED = 0
    LINEAR = 1
    RMS_NORM = 2
    LAYER_NORM = 3
    ADD = 4
    SCALE = 5
    SOFTCAP = 6
    ACTIVATE = 7
    GATE = 8
    HEADS = 9
    ATTEND = 10
    ROWS = 11


# Activations by the names that blocks have for them.
ACTIVATIONS = {
    "silu": 0,
    "swish": 0,
    "gelu": 1,
    "gelu_python": 1,
    "gelu_accurate": 2,
    "gelu_fast": 2,
    "gelu_new": 2,
    "gelu_python_tanh": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "relu2": 4,
}


class AttentionFields(ctypes.Structure):
    """`Attention` of cpu/attention.h."""

    _fields_ = (
        ("heads", _I),
        ("kv_heads", _I),
        ("head_dim", _I),
        ("page_size", _I),
        ("page_shift", _I),
        ("window", _I),
        ("chunk", _I),
        ("scale", _F),
        ("softcap", _F),
        ("sinks", _P),
        ("slopes", _P),
    )


class Instruction(ctypes.Structure):
    """`Instruction` of cpu/program.cpp."""

    _fields_ = (
        *((name, _I) for name in ("opcode", "input", "input2", "out", "out2")),
        *((name, _P) for name in ("weight", "bias", "weight2", "keys", "values")),
        *((name, _I) for name in ("k", "n", "sampled", "table")),
        *((name, _I) for name in ("rotary_dim", "interleaved", "kind", "offset")),
        ("scalar", _F),
        ("eps", _F),
        ("attention", AttentionFields),
    )


class Step(ctypes.Structure):
    """`Step` of cpu/program.cpp."""

    _fields_ = (
        ("program", ctypes.POINTER(Instruction)),
        ("length", _I),
        ("workspace", _P),
        ("logits", _P),
        ("scratch", _P),
        ("scratch_size", _I),
        *((n, _I) for n in ("rows", "logit_rows", "page_table_width", "threads")),
        *((name, _P) for name in ("tokens", "positions", "slots", "wanted")),
        *((name, _P) for name in ("page_table", "sequence_of", "cosines", "sines")),
    )


_RUN = {torch.float32: "run_step_float32", torch.bfloat16: "run_step_bfloat16"}


def can_run(dtype: torch.dtype) -> bool:
    """Whether programs over weights of `dtype` run on this machine; compiles the kernels if so."""
    return dtype in _RUN and cpu_library() is not None


def scratch_size(instructions: ctypes.Array, max_rows: int) -> int:
    """The float32 numbers that each thread needs for itself in steps of up to `max_rows` rows."""
    function = _library().scratch_size
    function.restype = _I
    return function(instructions, _I(len(instructions)), _I(max_rows))


def run(step: Step, dtype: torch.dtype) -> None:
    """Run a program; every address in `step` must be valid until it returns."""
    getattr(_library(), _RUN[dtype])(ctypes.byref(step), _P(thread_team()))


def _library() -> ctypes.CDLL:
    library = cpu_library()
    assert library is not None, "ask can_run first"
    return library


def addresses(tensors: list[torch.Tensor]) -> ctypes.Array:
    """A C array of where the data of `tensors` begin."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
