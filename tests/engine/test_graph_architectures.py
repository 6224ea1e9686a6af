"""What a CUDA graph needs of every architecture, without a GPU.

Padded, replayed decodes give the logits of eager ones: the recorder is the stand-in that runs a
recorded step again over the same memory; caches hold NaN where nothing was stored, and so does what
padding reads. And a decode reads no data on the host: it runs on tensors without data, with kernels
chosen as on a GPU, which are there as operations that know the shapes of what they give.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case, sweep
from test_cuda_graphs import RunAgain
from tiny_checkpoints import make_checkpoint, token_ids
from torch._subclasses.fake_tensor import FakeTensorMode

from assembler.blocks.context import ForwardContext
from assembler.engine.cuda_graphs import GraphSettings
from assembler.engine.decode_inputs import DecodeInputs
from assembler.engine.kv_cache import allocate_kv_caches, cache_specs
from assembler.engine.model_runner import ModelRunner
from assembler.engine.step_inputs import StepInputs, slots
from assembler.kernels import fused
from assembler.kernels.dispatch import attention_backend
from assembler.loading import load_model

PAGE_SIZE, NUM_PAGES, PROMPT = 4, 40, 9
CPU = torch.device("cpu")  # a torch without CUDA has no others, not even without data
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
        page_lists=[PAGES[text] for text, _, _ in places],
        logit_rows=None,
        max_seqlen_q=max(len(span) for _, span in spans),
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels, those of routers and experts too."""
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")


def decode(model: torch.nn.Module, backend: str) -> torch.Tensor:
    """A decode of four sequences on tensors without data."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.inference_mode():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        empty = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        inputs = DecodeInputs(4, max_model_len=64, page_size=16, device=CPU)
        input_ids, fields = inputs.of(4)
        ctx = ForwardContext(
            attention=attention_backend(backend, "cpu"),
            kv_caches=allocate_kv_caches(cache_specs(model), 6, 16, CPU, torch.float32),
            **fields,
        )
        return torch.func.functional_call(model, empty, (input_ids, ctx))


def check_padding(model: torch.nn.Module, texts: torch.Tensor) -> None:
    """Both texts in steps of their own lengths, eager and replayed."""
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


@pytest.mark.slow
@pytest.mark.parametrize("case", sweep())
def test_a_graph_can_hold_its_decodes(case: Case, tmp_path: Path, request: pytest.FixtureRequest):
    make_checkpoint(case, tmp_path)
    model = load_model(tmp_path)
    check_padding(model, token_ids())
    request.getfixturevalue("as_on_a_gpu")
    assert len(decode(model, "triton")) == 4


def test_one_that_does_is_found(tmp_path: Path, as_on_a_gpu: None):
    make_checkpoint(next(iter(sweep())).values[0], tmp_path)
    with pytest.raises(Exception, match=r"(?i)data.dependent|_local_scalar_dense|nonzero"):
        decode(load_model(tmp_path), "torch")  # which looks at the lengths
