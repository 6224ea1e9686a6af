"""llama.cpp through llama-cpp-python: the sequences of a batch decode together.

The library has no scheduler, so this is the loop of its own server: one token of every sequence
that decodes, then tokens of prompts as far as the batch has room.
"""

from __future__ import annotations

import llama_cpp
import numpy as np
from protocol import Generate, Settings, serve

CHUNK = 2048  # tokens of a step
# Of keys and values: as many bytes as the weights have; float16 is its default.
CACHE_TYPES = {"bfloat16": llama_cpp.GGML_TYPE_F16, "float32": llama_cpp.GGML_TYPE_F32}


class Engine:
    """A model and its context; sequences are numbered as their prompts are."""

    def __init__(self, settings: Settings) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(settings.model.encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = settings.cache_tokens
        context.n_seq_max = settings.max_seqs
        context.n_batch = CHUNK
        context.n_threads = context.n_threads_batch = settings.threads
        context.type_k = context.type_v = CACHE_TYPES[settings.dtype]
        context.kv_unified = True  # one cache of n_ctx tokens for all sequences
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("llama.cpp gave no context: see the log above")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Run (token, position, sequence, wanted); the best next token of those wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if status := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        best = {}
        for i, (_, _, sequence, wanted) in enumerate(tokens):
            if wanted:
                logits = llama_cpp.llama_get_logits_ith(self.context, i)
                best[sequence] = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
        return best

    def generate(self, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        outputs: list[list[int]] = [[] for _ in prompts]
        done = [0] * len(prompts)  # tokens of each prompt that have been run
        unfinished = set(range(len(prompts)))
        while unfinished:
            step = []
            for i in sorted(unfinished):
                if outputs[i]:
                    position = len(prompts[i]) + len(outputs[i]) - 1
                    step.append((outputs[i][-1], position, i, True))
            for i in sorted(unfinished):
                stop = min(len(prompts[i]), done[i] + CHUNK - len(step))
                for position in range(done[i], stop):
                    last = position == len(prompts[i]) - 1
                    step.append((prompts[i][position], position, i, last))
                done[i] = max(done[i], stop)
            for i, token in self.run(step).items():
                outputs[i].append(token)
                if len(outputs[i]) == counts[i]:
                    unfinished.remove(i)
                    llama_cpp.llama_memory_seq_rm(memory, i, -1, -1)
        return outputs


def load(settings: Settings) -> Generate:
    return Engine(settings).generate


if __name__ == "__main__":
    serve(load, ("llama-cpp-python",))
