"""Which variants of its kernels an attention launches: those of a warm-up, and those of steps.

As a script, in a process where Triton compiles (its interpreter excludes that), it prints both
numbers, and the variants of steps that no warm-up has met, as JSON. None is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import torch
from recorded_launches import recorded_launches
from triton.runtime.jit import JITFunction

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_triton import paged_attention_triton
from assembler.kernels.paged_attention_warmup import warm_up_batches
from assembler.kernels.paged_batch import PagedBatch

LONGEST = 32768


def steps() -> Iterator[PagedBatch]:
    """Decodes, prompts and both, of many sizes; tables of the steps at places of any alignment."""
    numbers = torch.zeros(1 << 16, dtype=torch.int32)
    lengths = [[1] * n for n in (1, 2, 3, 16, 17, 40, 256)]
    lengths += [[5], [16], [300], [7, 7], [8192], [5, 300], [1, 300], [2000, *[1] * 15]]
    for query_lens, longest, width in product(lengths, (1, 300, 4096, LONGEST), (1, 7, 16, 100)):
        tokens, sequences = sum(query_lens), len(query_lens)
        yield PagedBatch(
            slot_mapping=numbers[:tokens].long(),
            page_table=numbers[: sequences * width].view(sequences, width),
            cu_seqlens_q=numbers[3 : sequences + 4],
            context_lens=numbers[sequences : 2 * sequences],
            max_seqlen_q=max(query_lens),
            max_context_len=max(longest, *query_lens),
        )


def variants(batches: Iterable[PagedBatch]) -> set[str]:
    """By what Triton tells apart the kernels that it compiles for these steps on an H100."""
    cache = torch.empty(8, 16, 8, 128, dtype=torch.bfloat16)
    options = AttentionOptions(scale=0.1)
    with recorded_launches() as launches:
        for batch in batches:
            q = torch.empty(len(batch.slot_mapping), 32, 128, dtype=torch.bfloat16)
            for choice in (options, replace(options, window=512)):
                paged_attention_triton(q, cache, cache, batch, choice, gpu=GPUS["sm_90"])
    keys = set()

    def note(kernel: JITFunction, key: str, *_: object) -> None:
        keys.add(f"{kernel.__name__} {key}")

    with patch.object(JITFunction, "_do_compile", note):
        for launch in launches:
            launch.compile("sm_90")
    return keys


def main() -> None:
    warm = variants(warm_up_batches(LONGEST, torch.device("cpu")))
    met = variants(steps())
    print(json.dumps({"warm": len(warm), "met": len(met), "cold": sorted(met - warm)}))


if __name__ == "__main__":
    main()
