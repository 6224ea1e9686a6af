"""OpenVINO GenAI's continuous batching, which its `LLMPipeline` runs on too.

The cache of keys and values has the type of the model: by default it would be quantised to 8 bits.
"""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai
from protocol import Generate, Settings, serve

TYPES = {"bfloat16": "bf16", "float32": "f32"}


def load(settings: Settings) -> Generate:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_seqs = settings.max_seqs
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    properties = {
        "INFERENCE_PRECISION_HINT": TYPES[settings.dtype],
        "KV_CACHE_PRECISION": TYPES[settings.dtype],
        "INFERENCE_NUM_THREADS": settings.threads,
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        settings.model, scheduler, "CPU", properties
    )

    def generate(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        configs = [
            openvino_genai.GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False)
            for n in counts
        ]
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, configs)
        return [list(result.m_generation_ids[0]) for result in results]

    return generate


if __name__ == "__main__":
    serve(load, ("openvino-genai", "openvino"))
