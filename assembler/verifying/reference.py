"""The other side of a comparison: transformers' model of the same checkpoint.

transformers is an extra, imported when it is needed. Code of a checkpoint's own runs only where the
user said so (`trust_remote_code`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assembler.errors import CheckpointError, OptionError
from assembler.verifying.trace import ModuleCall, recorded


class Reference:
    """transformers' model in float32 on the CPU, with its slowest and plainest attention."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def config(self) -> Any:
        """The config of the text model."""
        return self.model.config.get_text_config()

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, length] -> [batch, length, vocab], without a cache."""
        return self.model(input_ids=ids, use_cache=False).logits.float()

    def trace(self, ids: torch.Tensor, paths: Sequence[str]) -> Mapping[str, ModuleCall]:
        """What these modules were given and gave."""
        with recorded(self.model, paths) as calls:
            self.logits(ids)
        return calls

    @property
    def head(self) -> str | None:
        """The path of the output head."""
        head = self.model.get_output_embeddings()
        return next((path for path, module in self.modules.items() if module is head), None)

    def module_of(self, tensor: str) -> str | None:
        """The module that owns what a tensor on disk becomes; None where that cannot be told."""
        path = self._renamed(tensor)
        while path and path not in self.modules:
            path = path.rpartition(".")[0]
        return path or None

    def _renamed(self, tensor: str) -> str:
        names, transforms = self._names, self._transforms
        if tensor in names:
            return tensor
        if transforms is not None:
            from transformers.core_model_loading import rename_source_key

            prefix = self.model.base_model_prefix
            tensor, _ = rename_source_key(tensor, *transforms, prefix, names)
        return tensor

    @cached_property
    def _names(self) -> dict[str, Any]:
        return self.model.state_dict()

    @cached_property
    def _transforms(self) -> tuple[list[Any], list[Any]] | None:
        """How names on disk become those in memory (experts, for one, are fused there)."""
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightConverter
        except ImportError:  # these are no public names of transformers
            return None
        found = get_model_conversion_mapping(self.model)
        converters = [t for t in found if isinstance(t, WeightConverter)]
        return [t for t in found if not isinstance(t, WeightConverter)], converters


def require_transformers() -> Any:
    """The transformers package, or an error that says how to get it."""
    try:
        import transformers
    except ImportError:
        raise OptionError(
            "comparing with transformers needs transformers: pip install 'model-assembler[verify]' "
            "(or pass against=FILE.safetensors, with input_ids and logits)"
        ) from None
    return transformers


def load_reference(path: Path, *, trust_remote_code: bool = False) -> Reference:
    """transformers' model of a checkpoint folder or .gguf file.

    Raises:
        CheckpointError: transformers cannot load it, or leaves some weights random.
    """
    transformers = require_transformers()
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    folder = path
    if path.is_file():
        folder = path.parent
        if path.suffix == ".gguf":
            options["gguf_file"] = path.name
    try:
        with quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            kind = model_class(transformers, config)
            model, info = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # of any type: it is another program's
        raise CheckpointError(_refusal(path, error, trust_remote_code)) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise CheckpointError(f"{path}: transformers finds no weights for {shown}: no reference")
    return Reference(model.eval())


def model_class(transformers: Any, config: Any) -> Any:
    """The class with a head for text: the auto class, else that of `architectures`."""
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in known or hasattr(config, "auto_map"):
        return transformers.AutoModelForCausalLM
    names = config.architectures or (type(config).__name__.replace("Config", "ForCausalLM"),)
    named = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    return named or transformers.AutoModelForCausalLM


def _refusal(path: Path, error: Exception, trusted: bool) -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    own_code = "trust_remote_code" in str(error) and not trusted
    hint = "if you trust the checkpoint's own code, pass trust_remote_code=true; else "
    return (
        f"{path}: transformers cannot load it: {type(error).__name__}: {reason.strip()} "
        f"({hint if own_code else ''}compare with a file: against=FILE.safetensors)"
    )


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' bars and warnings, which are not about this comparison."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.ERROR)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
