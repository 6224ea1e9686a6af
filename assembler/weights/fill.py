"""`fill_model`: a planned load from the first allocation to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from assembler.errors import OptionError
from assembler.weights.execute import execute_plan, materialize, parameter_dtypes
from assembler.weights.index import CheckpointIndex
from assembler.weights.memory_mapping import map_parameters
from assembler.weights.plan import LoadPlan

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Mmap = Literal["auto"] | bool


def fill_model(
    plan: LoadPlan,
    model: nn.Module,
    index: CheckpointIndex,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    mmap: Mmap = "auto",
    progress: Progress | None = None,
) -> None:
    """Give a model on meta its memory and the weights of a checkpoint.

    Args:
        mmap: "auto" leaves parameters in the memory-mapped files where they lie there as the model
            needs them: on a CPU, in the same type, neither merged nor sliced. They take no time
            and no memory of their own, and the files must not be changed while the model lives.
            False copies everything. True is "auto", but refuses if nothing can stay.
        progress: called with (bytes done, bytes in all) while weights are read.

    Raises:
        OptionError: `mmap=True` where no parameter can stay in the files.
        CheckpointError: the plan has findings, memory runs out, or reading fails. The model's
            parameters are on the meta device then.
    """
    device = torch.device(device)
    plan.raise_for_findings()
    mapped: dict[str, torch.Tensor] = {}
    if mmap and device.type == "cpu":
        dtypes = parameter_dtypes(model, dtype, plan.dtypes)
        mapped = map_parameters(plan, model, index, dtypes)
    if mmap is True and not mapped:
        raise OptionError(
            f"mmap=true: no parameter of {index.root} can stay in its file as {dtype} on {device}. "
            "That takes the CPU, the dtype of the file, and a tensor that is neither merged nor "
            "cut; mmap=auto maps what it can"
        )
    materialize(model, device, dtype, plan.dtypes, mapped)
    execute_plan(plan, model, index, _running_total(progress, plan.nbytes), mapped=mapped)
    index.close()


def _running_total(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Adds up bytes for a bar."""
    if progress is None:
        return None
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return add
