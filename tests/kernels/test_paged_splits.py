"""Contexts cut into splits: waves that are full, memory that is bounded, and the same results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from naive_attention import head_options, make_step
from torch.utils._python_dispatch import TorchDispatchMode

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_splits import (
    MAX_SPLITS,
    MAX_WAVES,
    choose_splits,
    keys_time,
    split_bytes,
)
from assembler.kernels.paged_attention_tiling import MIN_KEYS_PER_SPLIT, Heads, choose_tiling
from assembler.kernels.paged_attention_triton import paged_attention_triton

SLOTS = (132, 216, 264, 296, 608)  # programs side by side, from H100 with one each to MI300X
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)


def steps() -> Iterator[tuple[int, int, int, int]]:
    """Batches that splitting can fill a device with: sequences, programs, contexts, slots."""
    for slots, kv_heads, max_keys in itertools.product(SLOTS, (1, 2, 4, 8, 32), CONTEXTS):
        for batch in range(1, 257):
            programs = batch * kv_heads
            if programs * min(MAX_SPLITS, max_keys // MIN_KEYS_PER_SPLIT) >= slots:
                yield batch, programs, max_keys, slots


def test_waves_are_full():
    """The last wave takes as long as the others: what it leaves idle is lost."""
    least = {1024: 0.65, 2048: 0.75, 4096: 0.8, 8192: 0.8, 16384: 0.8, 32768: 0.8}
    for batch, programs, max_keys, slots in steps():
        splits = choose_splits(programs, max_keys, slots, lines=4, ragged=batch > 1)
        waves = programs * splits / slots
        assert waves / -(-programs * splits // slots) >= least[max_keys], (programs, max_keys)


@pytest.mark.parametrize(
    ("batch", "max_keys", "splits"),
    [
        (1, 1024, 4),  # no split gets less than 256 keys
        (1, 100, 1),
        (1, 40960, 31),  # one sequence: the device is filled once
        (8, 40960, 12),  # contexts may differ: about three waves
        (24, 4096, 4),  # 192 programs are 0.7 of a wave, 768 are 2.9
        (40, 4096, 3),  # 320 would be 1.2 waves, 960 are 3.6
        (64, 32768, 2),  # 1.9 waves would do if all were alike
        (128, 32768, 1),
        (256, 32768, 1),
    ],
)
def test_splits_of_decodes_with_8_heads_on_132_processors(batch, max_keys, splits):
    assert choose_splits(8 * batch, max_keys, 264, lines=4, ragged=batch > 1) == splits


def test_few_splits_are_preferred_but_not_at_a_price():
    """Alike contexts end at most a sixteenth later than with the best number of splits."""
    for _, programs, max_keys, slots in itertools.islice(steps(), 0, None, 37):
        chosen = choose_splits(programs, max_keys, slots, lines=4)
        most = min(MAX_SPLITS, max_keys // MIN_KEYS_PER_SPLIT, MAX_WAVES * slots // programs)
        times = [keys_time(programs, max_keys, slots, n, 4) for n in range(1, max(most, 1) + 1)]
        assert times[chosen - 1] <= min(times) * 17 / 16
        assert all(time > min(times) * 17 / 16 for time in times[: chosen - 1])


@pytest.mark.parametrize("architecture", GPUS)
@pytest.mark.parametrize(
    "heads", [Heads(4, 128, 128), Heads(48, 128, 128), Heads(128, 576, 512, latent=True)]
)
def test_the_memory_of_splits_is_bounded(architecture, heads):
    """By the device, however many sequences, tokens and keys there are."""
    gpu = GPUS[architecture]
    for decode, kv_heads in itertools.product((True, False), (1, 8)):
        tiling = choose_tiling(heads, gpu, decode)
        parts = kv_heads * -(-heads.group // tiling.tiles.HEADS)
        lines = tiling.tiles.BLOCK_Q * tiling.tiles.HEADS
        for places, max_keys in itertools.product((1, 7, 33, 100, 256, 2048), CONTEXTS):
            blocks = places if decode else places // tiling.tiles.BLOCK_Q + 1
            splits = choose_splits(blocks * parts, max_keys, tiling.slots(gpu), lines=lines)
            kept = places * kv_heads * heads.group * splits * (heads.head_dim_v + 1) * 4
            assert splits == 1 or kept <= split_bytes(heads, gpu)
    assert split_bytes(heads, gpu) < 200 << 20


@pytest.mark.parametrize(
    ("query_lens", "splits"), [([1, 1], 3), ([1, 1], MAX_SPLITS), ([2, 1], 5), ([3, 3], 7)]
)
def test_any_number_of_splits_gives_the_whole(query_lens, splits, poisoned_memory):
    step = make_step(query_lens, [5, 600], heads=3, kv_heads=1, head_dim=40, page_size=16)
    options = head_options(3, "sinks")
    got = paged_attention_triton(
        step.q, step.k_cache, step.v_cache, step.batch, options, splits=splits, gpu=GPUS["sm_90"]
    )
    torch.testing.assert_close(got.double(), step.expected(options), atol=2e-6, rtol=1e-5)


def test_wide_values_are_merged_in_parts(poisoned_memory):
    about = {"heads": 4, "kv_heads": 1, "head_dim": 336, "head_dim_v": 272, "latent": True}
    step = make_step([1, 1], [600, 1], **about, page_size=16)
    options = AttentionOptions(scale=0.05, value_dim=272)
    got = paged_attention_triton(
        step.q, step.k_cache, None, step.batch, options, splits=2, gpu=GPUS["sm_90"]
    )
    torch.testing.assert_close(got.double(), step.expected(options), atol=2e-6, rtol=1e-5)


class _Float32(TorchDispatchMode):
    """Counts the numbers of float32 tensors that are made."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.new_empty.default and out.dtype == torch.float32:
            self.made += out.numel()
        return out


def test_decodes_of_a_mixed_step_keep_splits_of_decodes_only():
    step = make_step([1, 60], [600, 60], dtype=torch.float16, page_size=16)
    with _Float32() as kept:
        paged_attention_triton(
            step.q, step.k_cache, step.v_cache, step.batch, AttentionOptions(scale=0.3), splits=2
        )
    assert kept.made == 2 * 4 * 2 * (16 + 1)  # sequences, heads, splits, values and sum of weights
