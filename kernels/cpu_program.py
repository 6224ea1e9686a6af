"""Programs of the CPU kernels: the instructions of cpu/instructions.h, and the call to run them."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch

from assembler.kernels.cpu_library import cpu_library, thread_team

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float

LOGITS = -1  # the place of the result, which is outside of the workspace
NOTHING = -2


class Opcode(IntEnum):
    """What an instruction does; the order is that of cpu/instructions.h."""

    EMBED = 0
    LINEAR = 1
    RMS_NORM = 2
    LAYER_NORM = 3
    ADD = 4
    MULTIPLY = 5
    SCALE = 6
    SOFTCAP = 7
    ACTIVATE = 8
    XIELU = 9
    GATE = 10
    CLIP = 11
    TURN = 12
    STORE = 13
    ATTEND = 14
    ROWS = 15
    POSITIONS = 16
    TABLE = 17
    SCORE_EXPERTS = 18
    CHOOSE_EXPERTS = 19
    GROUP_BY_EXPERT = 20
    GATHER = 21
    EXPERT_LINEAR = 22
    COMBINE = 23
    ABSORB = 24
    READ_LATENT = 25


# Those that make a row of the same row of what came before, so that they may run in a chain.
ROW_BY_ROW = frozenset(
    {
        Opcode.RMS_NORM,
        Opcode.LAYER_NORM,
        Opcode.ADD,
        Opcode.MULTIPLY,
        Opcode.SCALE,
        Opcode.SOFTCAP,
        Opcode.ACTIVATE,
        Opcode.XIELU,
        Opcode.GATE,
        Opcode.CLIP,
        Opcode.TURN,
        Opcode.STORE,
        Opcode.POSITIONS,
        Opcode.TABLE,
        Opcode.CHOOSE_EXPERTS,
    }
)
# Those that such a chain may begin with.
BEGINS_CHAIN = ROW_BY_ROW | {Opcode.EMBED, Opcode.GATHER, Opcode.COMBINE}


class Epilogue(IntEnum):
    """What a product does before it stores, its `kind`; the order is that of cpu/linear.h."""

    PLAIN = 0
    ACTIVATED = 1
    GATED = 2


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
    "sigmoid": 5,
    "tanh": 6,
    "quick_gelu": 7,
    "linear": 8,
    "gelu_10": 9,
    "hardswish": 10,
    "laplace": 11,
    "leaky_relu": 12,
    "mish": 13,
    "relu6": 14,
    "softplus": 15,
    "sqrtsoftplus": 16,
}


class SpanFields(ctypes.Structure):
    """`Span` of cpu/instructions.h: units of a row."""

    _fields_ = tuple((name, _I) for name in ("first", "count", "stride", "width"))


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
        ("rounded", _I),
    )


class RouterKind(IntEnum):
    """How a router scores; the order is that of cpu/experts.h."""

    SOFTMAX = 0
    SIGMOID = 1
    SPARSE_MIXER = 2


class RoutingFields(ctypes.Structure):
    """`Routing` of cpu/experts.h."""

    _fields_ = (
        *((name, _I) for name in ("experts", "top_k", "kind", "groups", "top_groups", "best_two")),
        *((name, _I) for name in ("normalise", "weigh_input")),
        *((name, _F) for name in ("min_sum", "scale", "jitter")),
        ("selection_bias", _P),
    )


class LatentFields(ctypes.Structure):
    """`Latent` of cpu/latent.h."""

    _fields_ = tuple((name, _I) for name in ("nope", "rope", "rank", "value"))


class Instruction(ctypes.Structure):
    """`Instruction` of cpu/instructions.h."""

    _fields_ = (
        *((name, _I) for name in ("opcode", "chain", "input", "input2", "out", "out2")),
        *((name, _P) for name in ("weight", "bias", "keys", "values")),
        *((name, _I) for name in ("k", "n", "sampled", "times", "table", "by_position")),
        *((name, _I) for name in ("interleaved", "kind", "offset", "weight_step", "shared")),
        *((name, _F) for name in ("scalar", "eps", "limit", "up_offset")),
        ("span", SpanFields),
        ("attention", AttentionFields),
        ("routing", RoutingFields),
        ("latent", LatentFields),
    )


class Step(ctypes.Structure):
    """`Step` of cpu/instructions.h."""

    _fields_ = (
        ("program", _P),
        ("length", _I),
        ("workspace", _P),
        ("logits", _P),
        ("scratch", _P),
        ("scratch_size", _I),
        *((n, _I) for n in ("rows", "logit_rows", "page_table_width", "threads")),
        *((name, _P) for name in ("tokens", "positions", "slots", "wanted")),
        *((name, _P) for name in ("page_table", "sequence_of", "tables")),
    )


_RUN = {torch.float32: "run_step_float32", torch.bfloat16: "run_step_bfloat16"}
_LARGEST = {torch.float32: "largest_float32", torch.bfloat16: "largest_bfloat16"}


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


def largest_columns(values: torch.Tensor) -> list[int]:
    """The first column of the largest number of each row of `values` [R, N].

    -1 for a row with a NaN, and for one whose largest number is not finite. `can_run` says for
    which dtypes.
    """
    values = values.contiguous()
    rows, size = values.shape
    columns = (_I * rows)()
    function = getattr(_library(), _LARGEST[values.dtype])
    threads = _I(torch.get_num_threads())
    function(_P(values.data_ptr()), _I(rows), _I(size), columns, threads, _P(thread_team()))
    return [*columns]


def _library() -> ctypes.CDLL:
    library = cpu_library()
    assert library is not None, "ask can_run first"
    return library


def addresses(tensors: list[torch.Tensor]) -> ctypes.Array:
    """A C array of where the data of `tensors` begin."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
