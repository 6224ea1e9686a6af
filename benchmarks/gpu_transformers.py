"""The requests of a benchmark in transformers' continuous batching."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

Shapes = list[tuple[list[int], int]]  # prompt and number of new tokens


def transformers_seconds(
    file: Path, device: torch.device, shapes: Shapes, warm_up: Shapes
) -> float:
    """How long it takes for `shapes` after `warm_up`; weights are random.

    Args:
        file: the model's config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(file.parent)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    sizes = {}
    if device.type == "cpu":  # whose memory it would fill with its cache
        from transformers import ContinuousBatchingConfig

        small = ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)
        sizes = {"continuous_batching_config": small}
    manager = model.init_continuous_batching(generation_config=greedy, **sizes)
    manager.start()
    try:
        _manage(manager, warm_up)
        start = time.perf_counter()
        _manage(manager, shapes)
        return time.perf_counter() - start
    finally:
        manager.stop(block=True)


def _manage(manager: Any, shapes: Shapes) -> None:
    """Run requests through transformers' manager until all are done."""
    waiting = {manager.add_request(prompt, max_new_tokens=count) for prompt, count in shapes}
    while waiting:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching has stopped")
        if result is not None and result.is_finished():
            waiting.discard(result.request_id)
