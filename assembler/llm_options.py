"""The options of `LLM`, of `python -m assembler.generate` and of whoever else runs a model.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from assembler.engine.options import EngineOptions


class LLMOptions(EngineOptions):
    """Which model, where and how it runs; the engine's own options come with it."""

    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    overrides: tuple[str, ...] = Field(
        (), description='Hydra overrides of the model, e.g. ["conf.layers.count=2"]'
    )
    search_path: tuple[str, ...] = Field(
        (), description="more folders that hold conf/ and weight_maps/"
    )
    load: Literal["auto", "dummy"] = Field(
        "auto", description="dummy fills random weights: only the checkpoint's config is read"
    )
    mmap: bool | Literal["auto"] = Field(
        "auto",
        description="leave weights in the mapped files where they fit as they are (CPU); true: "
        "refuse if none does; do not change the files meanwhile",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and cache; auto: float32 on a CPU, else as published"
    )
    device: str = Field(
        "auto", description="cpu, cuda, cuda:1, mps, xpu, ...; auto: a GPU if there is one"
    )
    attention: Literal["auto", "torch", "triton", "flash_attn"] = Field(
        "auto", description="attention kernels; auto: triton on a GPU, torch elsewhere"
    )
    rewrites: str | tuple[str, ...] = Field(
        "all", description="graph rewrites: all, none, or a list of names"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="ranks that share the model")

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_name(cls, dtype: Any) -> Any:
        return dtype if dtype is None else str(dtype).removeprefix("torch.")

    @field_validator("overrides", "search_path", "rewrites", mode="before")
    @classmethod
    def _lists_as_tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("conf", "device", mode="before")
    @classmethod
    def _paths_as_text(cls, value: Any) -> Any:
        return None if value is None else str(value)

    def engine_options(self) -> EngineOptions:
        """The part of these options that the engine reads."""
        return EngineOptions(**{name: getattr(self, name) for name in EngineOptions.model_fields})
