"""Writes a tiny random checkpoint of a `Case` with transformers, as its hub repository would be."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import LENGTH, VOCAB_SIZE, Case
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from assembler.verifying.random_weights import randomise

transformers.utils.logging.disable_progress_bar()

# Fields in which transformers 4 and the hub say what `rope_parameters` and `layer_types` say.
_NEW_FIELDS = ("rope_parameters", "layer_types", "dtype", "_sliding_window_pattern")


def make_checkpoint(case: Case, folder: Path) -> PreTrainedModel:
    """Save the random model of `case` into `folder` (config.json, model.safetensors); return it.

    Every weight, norm and bias is random, and the logits have a standard deviation near 1.
    """
    config = getattr(transformers, case.config_class)(**case.knobs)
    config._attn_implementation = case.attention
    torch.manual_seed(0)
    model = model_class(case)(config).eval()
    seed = zlib.crc32(case.name.encode())
    randomise(model, seed, lambda made: reference_logits(made, token_ids()))
    model.save_pretrained(folder)
    if case.extra_tensors or case.dropped_prefix:
        _rewrite_tensors(case, folder / "model.safetensors", model.config.num_hidden_layers)
    return model


def model_class(case: Case) -> type[PreTrainedModel]:
    """The causal language model (or the multimodal one around it) of the case's config."""
    if case.model_class is not None:
        return getattr(transformers, case.model_class)
    return MODEL_FOR_CAUSAL_LM_MAPPING[getattr(transformers, case.config_class)]


def token_ids(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    """Random texts [batch, length]; ids with a meaning for multimodal models are left out."""
    generator = torch.Generator().manual_seed(17)
    return torch.randint(1, VOCAB_SIZE - 6, (batch, length), generator=generator)


@torch.no_grad()
def reference_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What transformers computes without a cache: [batch, length, vocab]."""
    return model(input_ids=ids, use_cache=False).logits.float()


def to_hub_style(case: Case, folder: Path) -> None:
    """Rewrite config.json in the dialect of transformers 4, which most of the hub is written in."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = "float32"
    _rewrite_fields(config.get("text_config", config), case)
    path.write_text(json.dumps(config, indent=2))


def _rewrite_fields(fields: dict[str, Any], case: Case) -> None:
    rope = fields.get("rope_parameters") or {}
    for name in _NEW_FIELDS:
        fields.pop(name, None)
    if "sliding_attention" in rope:  # one RoPE a layer type: Gemma 3 named the second base
        fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"] or {}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            fields[case.hub_names.get(key, key)] = rope[key]
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    if rope and scaling["rope_type"] == "default":
        scaling = None
    hub = dict(case.hub)
    if scaling and "type" in hub.get("rope_scaling", {}):
        # Files of that age say `type`, and the pretrained length beside the dict.
        del scaling["rope_type"], scaling["original_max_position_embeddings"]
        scaling |= hub.pop("rope_scaling")
    if rope:
        fields["rope_scaling"] = scaling
    fields |= hub
    for name in case.hub_lacks:
        fields.pop(name, None)


def _rewrite_tensors(case: Case, path: Path, num_layers: int) -> None:
    """Give the file the names and the useless tensors that the published one has."""
    tensors = {k.removeprefix(case.dropped_prefix): v for k, v in load_file(path).items()}
    for pattern, shape in case.extra_tensors.items():
        for i in range(num_layers):
            tensors[pattern.format(i=i)] = torch.ones(shape)
    save_file(tensors, path, metadata={"format": "pt"})
