"""A language model as data: two YAML files become a checked, loaded, generating torch module.

    from assembler import LLM, SamplingParams
    llm = LLM("path/to/checkpoint")
    print(llm.generate(["Hello"], SamplingParams(max_tokens=32))[0].outputs[0].text)

The names below are the public interface; each is imported when first used, so that
`import assembler` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "LLM": "assembler.llm",
    "AsyncLLM": "assembler.async_llm",
    "LLMEngine": "assembler.engine.llm_engine",
    "SamplingParams": "assembler.engine.sampling_params",
    "RequestOutput": "assembler.engine.outputs",
    "diff_architectures": "assembler.diff",
    "draft_architecture": "assembler.drafting.drafting",
    "explain_tensor": "assembler.explain",
    "load_model": "assembler.loading",
    "logits": "assembler.loading",
    "memory_use": "assembler.memory",
    "load_spec": "assembler.model.compose",
    "new_architecture": "assembler.new",
    "build_model": "assembler.model.build",
    "show_model": "assembler.show",
    "verify_model": "assembler.verify",
    "AssemblerError": "assembler.errors",
}
__all__ = [
    "LLM",
    "AssemblerError",
    "AsyncLLM",
    "LLMEngine",
    "RequestOutput",
    "SamplingParams",
    "__version__",
    "build_model",
    "diff_architectures",
    "draft_architecture",
    "explain_tensor",
    "load_model",
    "load_spec",
    "logits",
    "memory_use",
    "new_architecture",
    "show_model",
    "verify_model",
]

if TYPE_CHECKING:
    from assembler.async_llm import AsyncLLM
    from assembler.diff import diff_architectures
    from assembler.drafting.drafting import draft_architecture
    from assembler.engine.llm_engine import LLMEngine
    from assembler.engine.outputs import RequestOutput
    from assembler.engine.sampling_params import SamplingParams
    from assembler.errors import AssemblerError
    from assembler.explain import explain_tensor
    from assembler.llm import LLM
    from assembler.loading import load_model, logits
    from assembler.memory import memory_use
    from assembler.model.build import build_model
    from assembler.model.compose import load_spec
    from assembler.new import new_architecture
    from assembler.show import show_model
    from assembler.verify import verify_model


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'assembler' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
