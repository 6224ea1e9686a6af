"""Every architecture gives the same logits in padded, replayed decodes as in eager ones.

The recorder is the stand-in that runs a recorded step again over the same memory; caches hold NaN
where nothing was stored, and so does what padding reads.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case, sweep
from test_cuda_graphs import RunAgain
from tiny_checkpoints import make_checkpoint, token_ids

from assembler.engine.cuda_graphs import GraphSettings
from assembler.engine.model_runner import ModelRunner
from assembler.engine.step_inputs import StepInputs, slots
from assembler.kernels.dispatch import attention_backend
from assembler.loading import load_model

PAGE_SIZE, NUM_PAGES, PROMPT = 4, 40, 9
PAGES = ([21, 3, 17, 8, 30], [5, 33, 12, 2, 19])


def step(texts: torch.Tensor, places: list[tuple[int, int, int]]) -> StepInputs:
    """The tokens from one position to another of some of the texts: (text, start, end)."""
    spans = [(text, range(start, end)) for text, start, end in places]
    lengths = [end for _, _, end in places]
    return StepInputs(
        input_ids=[int(texts[text, place]) for text, span in spans for place in span],
        positions=[place for _, span in spans for place in span],
        sequence_lengths=[max(PROMPT, place + 1) for _, span in spans for place in span],
        slot_mapping=[s for t, a, b in places for s in slots(PAGES[t], a, b, PAGE_SIZE)],
        cu_seqlens_q=torch.tensor([0, *(b - a for _, a, b in places)]).cumsum(0).tolist(),
        context_lens=lengths,
        page_table=[PAGES[text] for text, _, _ in places],
        logit_rows=None,
        max_seqlen_q=max(len(span) for _, span in spans),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", sweep())
def test_padded_decodes_give_what_eager_ones_give(case: Case, tmp_path: Path):
    make_checkpoint(case, tmp_path)
    model, texts = load_model(tmp_path), token_ids()
    found = []
    for graphs in (None, GraphSettings((4, 8), 20, RunAgain())):
        runner = ModelRunner(
            model,
            attention_backend("torch", "cpu"),
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            graphs=graphs,
        )
        runner._small_step = None
        for tensor in (t for cache in runner.kv_caches for t in cache if t is not None):
            tensor.fill_(torch.nan)
        logits = [runner.run(step(texts, [(0, 0, PROMPT), (1, 0, 4)]))]
        for place in range(5):
            now = [(1, 4 + place, 5 + place)]
            if place != 2:
                now.insert(0, (0, PROMPT + place - (place > 2), PROMPT + 1 + place - (place > 2)))
            logits.append(runner.run(step(texts, now)).clone())
        found.append(torch.cat(logits))
    assert runner.graphs.num_replays == 5
    bound = 1e-5 * max(1.0, float(found[0].std()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=bound)
