import pytest
import torch
from engine_fakes import MemoryModel, logits_after

from assembler.engine.model_runner import ModelRunner
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from assembler.engine.sequence import Sequence
from assembler.engine.step_inputs import StepInputs, slots


def runner(page_size=4, num_pages=10):
    return ModelRunner(MemoryModel(), "backend", num_pages=num_pages, page_size=page_size)


def sequence(token_ids, pages, prompt=None, **params):
    params.setdefault("temperature", 0)
    prompt = prompt or len(token_ids)
    made = Sequence("r", token_ids[:prompt], SamplingParams(**params), max_length=100)
    made.token_ids = list(token_ids)
    made.pages = pages
    return made


def test_inputs_of_a_mixed_step():
    decoding = sequence(list(range(10, 19)), [7, 2, 5], prompt=6)
    prefilling = sequence(list(range(30, 50)), [0, 3, 1, 9])
    batch = ScheduledBatch(
        [
            ScheduledSequence(decoding, start=8, num_new_tokens=1, samples=True),
            ScheduledSequence(prefilling, start=3, num_new_tokens=7, samples=False),
        ]
    )
    input_ids, ctx = runner().model_inputs(StepInputs.of(batch, 4))
    paged = ctx.paged
    assert input_ids.tolist() == [18, *range(33, 40)]
    assert ctx.positions.tolist() == [8, *range(3, 10)]
    assert ctx.sequence_lengths.tolist() == [9] + [20] * 7
    assert paged.slot_mapping.tolist() == [5 * 4, 0 * 4 + 3, 12, 13, 14, 15, 4, 5]
    assert paged.page_table.tolist() == [[7, 2, 5], [0, 3, 1]]
    assert paged.cu_seqlens_q.tolist() == [0, 1, 8]
    assert paged.context_lens.tolist() == [9, 10]
    assert (paged.max_seqlen_q, paged.max_context_len) == (7, 10)
    assert ctx.logit_rows.tolist() == [0]
    assert ctx.attention == "backend"
    assert [t.dtype for t in (input_ids, ctx.positions, paged.slot_mapping)] == [torch.int64] * 3
    assert [t.dtype for t in (paged.page_table, paged.cu_seqlens_q, paged.context_lens)] == [
        torch.int32
    ] * 3


def test_a_step_of_decodes_wants_every_row_and_pads_the_page_table():
    short, long = sequence([1, 2], [4]), sequence(list(range(9)), [8, 6, 1])
    batch = ScheduledBatch(
        [ScheduledSequence(short, 1, 1, True), ScheduledSequence(long, 8, 1, True)]
    )
    _, ctx = runner().model_inputs(StepInputs.of(batch, 4))
    assert ctx.logit_rows is None
    assert ctx.paged.is_decode
    assert ctx.paged.page_table.tolist() == [[4, 0, 0], [8, 6, 1]]


def test_recomputed_tokens_get_the_lengths_they_had():
    preempted = sequence(list(range(8)), [1, 2], prompt=5)
    batch = ScheduledBatch([ScheduledSequence(preempted, 0, 8, True)])
    _, ctx = runner().model_inputs(StepInputs.of(batch, 4))
    assert ctx.sequence_lengths.tolist() == [5, 5, 5, 5, 5, 6, 7, 8]


def test_slots_of_chunks_that_start_and_end_inside_pages():
    pages = [5, 0, 8, 2]
    every = slots(pages, 0, 12, page_size=3)
    assert every == [15, 16, 17, 0, 1, 2, 24, 25, 26, 6, 7, 8]
    for start in range(12):
        for end in range(start + 1, 13):
            assert slots(pages, start, end, page_size=3) == every[start:end]


def test_execute_samples_one_token_for_each_sequence_that_ends_its_tokens():
    first, second = sequence([3, 4], [1]), sequence([5, 6, 7], [2])
    batch = ScheduledBatch(
        [ScheduledSequence(first, 0, 2, True), ScheduledSequence(second, 0, 2, False)]
    )
    tokens = runner().execute(batch)
    assert tokens == [int(logits_after([(3, 0, 2), (4, 1, 2)]).argmax())]


def test_execute_of_a_chunk_alone_samples_nothing():
    batch = ScheduledBatch([ScheduledSequence(sequence([5, 6, 7], [2]), 0, 2, False)])
    assert runner().execute(batch) == []


@pytest.mark.parametrize("every_row", [True, False])
def test_inputs_reach_another_rank_as_they_are(every_row):
    batch = ScheduledBatch(
        [
            ScheduledSequence(sequence([3, 4, 9, 1, 2], [4, 1]), 4, 1, True),
            ScheduledSequence(sequence([5, 6, 7], [2]), 2 if every_row else 1, 1, every_row),
        ]
    )
    inputs = StepInputs.of(batch, page_size=4)
    assert (inputs.logit_rows is None) == every_row
    assert StepInputs.unpack(inputs.pack()) == inputs


def test_a_warm_up_runs_short_steps_over_the_caches_and_stores_nothing():
    class Watched(MemoryModel):
        def forward(self, input_ids, ctx):
            assert len(input_ids) == len(ctx.positions) == len(ctx.sequence_lengths)
            assert ctx.paged.slot_mapping.tolist() == [-1] * len(input_ids)
            assert ctx.kv_caches is made.kv_caches
            self.steps.append((ctx.positions.tolist(), ctx.paged.max_context_len))

    made = ModelRunner(Watched(), "backend", num_pages=10, page_size=4)
    made.warm_up(500)
    assert made.model.steps == [([0], 1), ([0], 500), ([0, 1], 2), ([0, 1], 500)]
