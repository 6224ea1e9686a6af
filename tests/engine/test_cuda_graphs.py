"""Decodes replayed from recorded steps give the tokens of eager ones, whatever pads the batch.

A graph replays a step over the same memory. On a CPU a stand-in does that by running the recorded
function again: what is stale, padded wrongly or kept from an earlier pass shows in the tokens.
"""

from __future__ import annotations

import random

import pytest
import torch
from engine_fakes import VOCAB, make_engine, run
from test_engine_attention import TinyLM

from assembler.engine.cuda_graphs import (
    CUDACapture,
    GraphSettings,
    batch_sizes,
    graph_memory,
    graph_settings,
    record_decodes,
)
from assembler.engine.decode_inputs import DecodeInputs
from assembler.engine.model_runner import ModelRunner
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.step_inputs import StepInputs
from assembler.kernels.dispatch import TorchAttention, attention_backend

MAX_LEN = 100


class RunAgain:
    """Stands for the recorder of a GPU: a replay runs the step, as it was given, once more."""

    def __init__(self, fails_at: dict[int, Exception] | None = None) -> None:
        self.recorded = 0
        self.fails_at = fails_at or {}
        self.free = 1000

    def __call__(self, step):
        self.recorded += 1
        if self.recorded in self.fails_at:
            raise self.fails_at[self.recorded]
        self.free -= 10
        step()
        return step

    def free_memory(self) -> int:
        return self.free


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyLM().requires_grad_(False)


def engine_with(model, capture, *, sizes=(1, 2, 4, 8), **options):
    """An engine over torch attention, with caches of NaN; `capture` None: without graphs."""
    engine = make_engine(model, max_model_len=MAX_LEN, **options)
    runner = engine.model_runner
    runner.attention_backend = attention_backend("torch", "cpu")
    runner._small_step = None
    if capture is not None:
        settings = GraphSettings(sizes, MAX_LEN, capture)
        runner.graphs = record_decodes(
            settings, model, runner._context, page_size=runner.page_size, device=runner.device
        )
    return engine


def tokens(engine, count=9):
    """What requests of many lengths generate, some of which arrive while others run."""
    rng = random.Random(3)
    wanted = []
    for number in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 25))]
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0]), seed=number, max_tokens=rng.randint(1, 30)
        )
        wanted.append((f"r{number}", prompt, params))
    outputs = {}
    for request in wanted:
        engine.add_request(*request)
        for output in engine.step():
            outputs[output.request_id] = output
    outputs.update(run(engine))
    return {name: output.outputs[0].token_ids for name, output in outputs.items()}


WAYS = {
    "plain": {},
    "scattered": {"page_size": 3, "shuffle_pages": 3},
    "preemption": {"num_pages": 30, "page_size": 4},
    "chunks": {"max_num_batched_tokens": 9, "max_num_seqs": 9},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_same_tokens_as_eager_steps(model, way):
    expected = tokens(engine_with(model, None, **way))
    engine = engine_with(model, RunAgain(), **way)
    assert tokens(engine) == expected
    stats, graphs = engine.stats, engine.model_runner.graphs
    assert 10 < stats.num_graph_steps == graphs.num_replays < stats.num_steps
    assert graphs.memory == 40


def test_steps_of_every_size_take_the_smallest_graph_that_holds_them(model):
    engine = engine_with(model, RunAgain())
    graphs = engine.model_runner.graphs
    used = []
    graphs.replays = {
        size: lambda size=size, replay=replay: (used.append(size), replay())
        for size, replay in graphs.replays.items()
    }
    for number in range(5):
        params = SamplingParams(temperature=0, max_tokens=3 + number)
        engine.add_request(f"r{number}", [1, 2, number], params)
    run(engine)
    assert used == [8, 8, 4, 4, 2, 1]  # of 5, 5, 4, 3, 2 and 1 sequences


def test_a_step_larger_than_the_ladder_runs_eagerly(model):
    expected = tokens(engine_with(model, None))
    engine = engine_with(model, RunAgain(), sizes=(1, 2))
    assert tokens(engine) == expected
    assert 0 < engine.stats.num_graph_steps < engine.stats.num_steps // 2


def test_padding_stores_nothing_and_its_poison_reaches_no_token(model):
    """Padding reads a page that nobody has written: NaN, which stays in its own rows."""
    engine = engine_with(model, RunAgain(), sizes=(8,), num_pages=60, page_size=4)
    for name in ("a", "b", "c"):
        engine.add_request(name, [1, 2, 3], SamplingParams(temperature=0, max_tokens=4))
    used = set()
    while not engine.is_finished():
        engine.step()
        used |= {page for sequence in engine.scheduler.running for page in sequence.pages}
    assert engine.stats.num_graph_steps == 3
    assert engine.model_runner.graphs.logits[:3].isfinite().all()
    for cache in engine.model_runner.kv_caches:
        for tensor in cache:
            written = tensor.isfinite().flatten(1).any(1).nonzero().flatten()
            assert set(written.tolist()) <= used


def decodes(page_lists, context_lens):
    count = len(context_lens)
    return StepInputs(
        input_ids=list(range(count)),
        positions=[length - 1 for length in context_lens],
        sequence_lengths=list(context_lens),
        slot_mapping=[7 + number for number in range(count)],
        cu_seqlens_q=list(range(count + 1)),
        context_lens=list(context_lens),
        page_lists=page_lists,
        logit_rows=None,
        max_seqlen_q=1,
    )


def test_inputs_of_one_size_leave_nothing_of_another():
    inputs = DecodeInputs(8, max_model_len=40, page_size=4, device=torch.device("cpu"))
    rng = random.Random(0)
    step = None
    for _ in range(60):
        count = rng.randint(1, 8)
        size = rng.choice([s for s in (1, 2, 4, 8) if s >= count])
        lengths = [rng.randint(1, 40) for _ in range(count)]
        if step is None or rng.random() < 0.7:
            pages = [[rng.randrange(99) for _ in range(-(-n // 4))] for n in lengths]
            step = decodes(pages, lengths)
        count, size = len(step.input_ids), max(size, len(step.input_ids))
        inputs.fill(step, size)
        input_ids, fields = inputs.of(size)
        paged, padding = fields["paged"], size - count
        assert input_ids.tolist() == step.input_ids + [0] * padding
        assert fields["positions"].tolist() == step.positions + [0] * padding
        assert fields["sequence_lengths"].tolist() == step.sequence_lengths + [1] * padding
        assert paged.slot_mapping.tolist() == step.slot_mapping + [-1] * padding
        assert paged.context_lens.tolist() == step.context_lens + [1] * padding
        assert paged.cu_seqlens_q.tolist() == list(range(size + 1))
        width = max(map(len, step.page_lists))
        padded = [pages + [0] * (width - len(pages)) for pages in step.page_lists]
        assert paged.page_table[:count, :width].tolist() == padded
        assert paged.is_decode and paged.max_context_len == 40


def test_a_context_longer_than_the_graphs_were_made_for_is_not_taken(model):
    graphs = engine_with(model, RunAgain()).model_runner.graphs
    assert graphs.takes(decodes([[1]], [MAX_LEN]))
    assert not graphs.takes(decodes([[1]], [MAX_LEN + 1]))


def test_the_ladder():
    assert batch_sizes(1) == [1]
    assert batch_sizes(5) == [1, 2, 4, 5]
    assert batch_sizes(36) == [1, 2, 4, 8, 16, 24, 32, 36]
    assert batch_sizes(4096)[-3:] == [480, 496, 512]


def test_a_size_without_memory_is_left_out(model, caplog):
    engine = engine_with(model, RunAgain({1: torch.OutOfMemoryError("no memory")}))
    assert engine.model_runner.graphs.sizes == [1, 2, 4]
    assert "CUDA graph of 8 sequences" in caplog.text
    assert tokens(engine) == tokens(engine_with(model, None))


def test_a_step_of_the_largest_batch_that_finds_no_memory_costs_its_graph_alone(caplog):
    class Large(TinyLM):
        def forward(self, input_ids, ctx):
            if len(input_ids) > 4:
                raise torch.OutOfMemoryError("no memory")
            return super().forward(input_ids, ctx)

    graphs = engine_with(Large().requires_grad_(False), RunAgain()).model_runner.graphs
    assert graphs.sizes == [1, 2, 4] and len(graphs.logits) == 4
    assert "CUDA graph of 8 sequences" in caplog.text


def test_a_model_that_reads_on_the_host_runs_eagerly(model, caplog):
    error = RuntimeError("called a synchronizing CUDA operation")
    engine = engine_with(model, RunAgain({2: error}))
    assert engine.model_runner.graphs is None
    assert "without CUDA graphs: called a synchronizing" in caplog.text
    assert tokens(engine) == tokens(engine_with(model, None))
    assert engine.stats.num_graph_steps == 0


def test_where_graphs_are_recorded(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr("assembler.engine.cuda_graphs.CUDACapture", lambda device: "capture")
    cuda, triton = torch.device("cuda"), attention_backend("triton", "cpu")
    caplog.clear()
    found = graph_settings(3, 50, cuda, triton, alone=True)
    assert (found.batch_sizes, found.max_model_len, found.capture) == ([1, 2, 3], 50, "capture")
    assert graph_settings(3, 50, torch.device("cpu"), triton, alone=True) is None
    assert not caplog.text
    assert graph_settings(3, 50, cuda, triton, alone=False) is None
    assert "several ranks" in caplog.text
    assert graph_settings(3, 50, cuda, TorchAttention(), alone=True) is None
    assert "'torch' reads data on the host" in caplog.text


def test_memory_left_for_graphs_grows_with_their_number(model):
    small, large = (
        graph_memory(GraphSettings(batch_sizes(count), MAX_LEN, RunAgain()), model)
        for count in (1, 64)
    )
    assert large - small >= 10 * (16 << 20)


def test_enforce_eager_records_nothing(model):
    capture = RunAgain()
    settings = GraphSettings((1, 2), MAX_LEN, capture)
    for eager, recorded in ((True, 0), (False, 2)):
        runner = ModelRunner(
            model,
            attention_backend("torch", "cpu"),
            num_pages=4,
            page_size=4,
            enforce_eager=eager,
            graphs=settings,
        )
        assert capture.recorded == recorded
        assert (runner.graphs is None) == eager


@pytest.mark.gpu
def test_the_same_tokens_on_a_gpu(model):
    device = torch.device("cuda")
    settings = GraphSettings(batch_sizes(16), MAX_LEN, CUDACapture(device))
    found = []
    for graphs in (None, settings):
        engine = make_engine(model, max_model_len=MAX_LEN)
        engine.model_runner = ModelRunner(
            model.to(device),
            attention_backend("triton", device),
            num_pages=400,
            page_size=4,
            device=device,
            graphs=graphs,
        )
        found.append(tokens(engine))
    assert found[0] == found[1]
    assert engine.model_runner.graphs.num_replays > 10
    model.cpu()
