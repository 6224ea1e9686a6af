"""A mixture of experts on a CPU: against transformers' ways to run experts, and a dense model.

    python benchmarks/moe.py [--dtype bfloat16] [--layers 2] [--rounds 5] [--threads 2]
        [--clock cpu] [--ways eager grouped_mm]

The mixture has random weights in the shape of OLMoE-1B-7B (hidden 2048; 64 experts of 1024, 8 a
token) with fewer layers and a small vocabulary, so that experts are most of the work; this engine
and transformers run the same checkpoint. The dense model has the same attention, and a feed-forward
layer as wide as a token's experts together: what a mixture would cost if grouping were free and a
batch chose alike. In prefills few layers flatter this engine: in the last one it does the wanted
token only, which transformers does not. All take turns in one process; the processor time of one
thread suffers least from what else runs on the machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from turns import Batch, Runs, agreement, take_turns

from assembler import LLM, SamplingParams

VOCABULARY = 8192
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
}
EXPERTS, CHOSEN, WIDTH = 64, 8, 1024
CACHE_BYTES = 256 << 20
WAYS = ("eager", "batched_mm", "grouped_mm")  # that transformers has for experts
# Sequences, tokens of each prompt, tokens generated for each.
WORKLOADS = {"decode, 1": (1, 8, 16), "decode, 16": (16, 8, 16), "prefill 256": (1, 256, 1)}


class Contender:
    """Something that generates, and how long it takes."""

    def __init__(self, name: str, run: Callable[[list[list[int]], list[int]], Any]) -> None:
        self.name, self.run = name, run

    def generate(self, prompts: list[list[int]], counts: list[int]) -> dict[str, Any]:
        start = time.perf_counter(), time.process_time()
        tokens = self.run(prompts, counts)
        times = time.perf_counter() - start[0], time.process_time() - start[1]
        return {"tokens": tokens, "seconds": times[0], "cpu_seconds": times[1]}


def batch_of(workload: str) -> Batch:
    """Random prompts."""
    draw = random.Random(workload)
    sequences, length, count = WORKLOADS[workload]
    prompts = [draw.choices(range(3, VOCABULARY), k=length) for _ in range(sequences)]
    return Batch(prompts, [count] * sequences, counts_prompts=count == 1)


def ours(name: str, folder: Path, dtype: str, load: str) -> Contender:
    """This engine on the checkpoint in `folder`, or on random weights (`load` "dummy")."""
    settings = {"max_model_len": 512, "enable_prefix_caching": False, "load": load}
    llm = LLM(folder, dtype=dtype, kv_cache_memory_bytes=CACHE_BYTES, **settings)

    def run(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in counts]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return Contender(name, run)


def theirs(model: transformers.PreTrainedModel, ways: list[str]) -> Iterator[Contender]:
    """transformers' `generate`, once for each of the ways that runs here."""
    default = model.config._experts_implementation

    def contender(way: str) -> Contender:
        @torch.inference_mode()
        def run(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
            model.set_experts_implementation(way)
            ids, new = torch.tensor(prompts), counts[0]
            settings = {"min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            mask = torch.ones_like(ids)
            found = model.generate(ids, attention_mask=mask, max_new_tokens=new, **settings)
            return found[:, ids.shape[1] :].tolist()

        return Contender(f"transformers, {way}{' (default)' if way == default else ''}", run)

    for way in ways:
        found = contender(way)
        try:
            found.run([[5, 6], [7, 8]], [1, 1])
        except (ValueError, RuntimeError, ImportError) as error:
            print(f"transformers, {way}: does not run here: {str(error).splitlines()[0]}")
        else:
            yield found


def contenders(folder: Path, dtype: str, layers: int, ways: list[str]) -> list[Contender]:
    """Ours, theirs, and ours on the dense model; `folder` takes the checkpoints."""
    torch.manual_seed(0)
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "intermediate_size": WIDTH}
    config = transformers.OlmoeConfig(**SHAPE, **experts, num_hidden_layers=layers)
    model = transformers.OlmoeForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()
    model.save_pretrained(folder / "mixture")
    words = WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0")
    Tokenizer(words).save(str(folder / "mixture" / "tokenizer.json"))
    wide = {"intermediate_size": CHOSEN * WIDTH, "num_hidden_layers": layers}
    dense = transformers.LlamaConfig(**SHAPE, **wide, architectures=["LlamaForCausalLM"])
    dense.save_pretrained(folder / "dense")
    return [
        ours("this engine", folder / "mixture", dtype, "auto"),
        *theirs(model, ways),
        ours("this engine, dense", folder / "dense" / "config.json", dtype, "dummy"),
    ]


def lines(workload: str, batch: Batch, runs: dict[str, Runs]) -> Iterator[str]:
    """The table's lines; tokens are compared with those of the first of transformers' ways."""
    own = next(iter(runs.values())).seconds
    expected = next(found.tokens for name, found in runs.items() if "transformers" in name)
    for name, found in runs.items():
        rate = batch.num_tokens / statistics.median(found.seconds)
        ratios = [other / mine for mine, other in zip(own, found.seconds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        same = "–" if "dense" in name else f"{agreement(found.tokens, expected):.0%}"
        yield f"| {workload} | {name} | {rate:.1f} | {spread} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--layers", type=int, default=2, help="bfloat16 takes 1.7 GB for each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="of transformers")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = "cpu_seconds" if options.clock == "cpu" else "seconds"
    with tempfile.TemporaryDirectory() as folder:
        taking = contenders(Path(folder), options.dtype, options.layers, options.ways)
    threads = torch.get_num_threads()
    print(f"{options.dtype}, {options.layers} layers, {threads} threads, {options.clock} time")
    print("| workload | engine | tokens/s | this engine against it | same tokens |")
    print("|---|---|---|---|---|", flush=True)
    for workload in options.workloads:
        batch = batch_of(workload)
        runs = take_turns(taking, batch, options.rounds, 1, clock)
        print("\n".join(lines(workload, batch, runs)), flush=True)


if __name__ == "__main__":
    main()
