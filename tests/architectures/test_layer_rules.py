"""Rules that say which layers are sparse choose those that transformers makes sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import named
from tiny_checkpoints import model_class
from transformers import Ernie4_5_MoeConfig

import assembler


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("end", [-1, 0, 2, 4, 5, 9])
def test_the_last_sparse_layer_of_ernie(end: int, interval: int) -> None:
    rule = {"moe_layer_end_index": end, "moe_layer_interval": interval, "num_hidden_layers": 5}
    case = named("ernie4_5_moe-biases")
    config: dict[str, Any] = {**case.knobs, **rule}
    with torch.device("meta"):
        model = model_class(case)(Ernie4_5_MoeConfig(**config))
    theirs = [hasattr(layer.mlp, "experts") for layer in model.model.layers]
    written = {**Ernie4_5_MoeConfig(**config).to_dict(), **rule}
    spec = assembler.load_spec("ernie4_5_moe", written)
    assert ["moe" in spec.kinds[kind].blocks for kind in spec.layer_kinds] == theirs
