"""The paged-attention kernel as each kind of GPU would cut it, over what models and steps differ.

Tiles change with the GPU, the widths and the group, so the same small steps are run with the tiling
of each. Memory that no query may read is NaN, and so is the output before it is written.
"""

from __future__ import annotations

import math

import pytest
import torch
from naive_attention import head_options, make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_triton import paged_attention_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
MIXED = ([1, 7, 0, 1, 20], [70, 7, 5, 1, 90])


def check(step, options, architecture, *, splits=1):
    got = paged_attention_triton(
        step.q, step.k_cache, step.v_cache, step.batch, options, splits=splits,
        gpu=GPUS[architecture],
    )  # fmt: skip
    tolerance = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[step.q.dtype]
    torch.testing.assert_close(got.double(), step.expected(options), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 160, 192, 256])
def test_widths(architecture, head_dim):
    step = make_step([1, 3], [40, 21], heads=2, kv_heads=1, head_dim=head_dim, page_size=16)
    check(step, AttentionOptions(scale=head_dim**-0.5), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_wider_than_values(architecture):
    step = make_step([1, 3], [40, 21], heads=2, kv_heads=1, head_dim=192, head_dim_v=128)
    check(step, AttentionOptions(scale=0.07), architecture)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages_within_and_across_tiles(architecture, page_size, dtype):
    step = make_step(*MIXED, page_size=page_size, dtype=dtype)
    check(step, AttentionOptions(scale=0.3), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 2), (7, 1), (40, 1)])
def test_groups(architecture, heads, kv_heads):
    step = make_step(*MIXED, heads=heads, kv_heads=kv_heads, dtype=torch.float16, page_size=16)
    check(step, AttentionOptions(scale=0.3), architecture)


@pytest.mark.parametrize("sight", [{"window": 33}, {"window": 64}, {"chunk": 48}, {"window": 1}])
def test_what_is_out_of_sight_is_not_read(sight):
    """Tiles that all queries see whole are read without masks; every border of those is met."""
    step = make_step([1, 150], [170, 200], heads=2, kv_heads=2, page_size=16, **sight)
    check(step, AttentionOptions(scale=0.3, **sight), "sm_90")


@pytest.mark.parametrize("names", [(), ("sinks", "alibi_slopes")])
def test_prefill_in_splits(names):
    """A few queries behind long contexts, all sequences alike."""
    step = make_step([3, 3], [700, 300], heads=2, kv_heads=1, page_size=16)
    check(step, head_options(2, *names, softcap=4.0), "sm_90", splits=4)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_decodes_of_a_mixed_step_are_split_and_the_rest_is_not(architecture):
    step = make_step([1, 4, 0, 1], [700, 30, 5, 300], page_size=16)
    check(step, AttentionOptions(scale=0.3), architecture, splits=4)


def test_a_padded_batch_writes_zeros_for_sequences_without_keys():
    """CUDA graphs replay with rows that stand for nothing."""
    step = make_step([1, 1], [5, 600], page_size=16)
    step.batch.context_lens[0] = 0
    for splits in (1, 4):
        got = paged_attention_triton(
            step.q, step.k_cache, step.v_cache, step.batch, AttentionOptions(scale=0.3),
            splits=splits, gpu=GPUS["sm_90"],
        )  # fmt: skip
        assert not got[0].any() and got[1].isfinite().all()


def test_nan_stays_with_its_sequence():
    step = make_step([1, 2, 1], [5, 9, 300], page_size=16)
    step.q[1] = math.nan
    for splits in (1, 2):
        got = paged_attention_triton(
            step.q, step.k_cache, step.v_cache, step.batch, AttentionOptions(scale=0.3),
            splits=splits, gpu=GPUS["sm_90"],
        )  # fmt: skip
        assert got[1].isnan().all() and got[[0, 2, 3]].isfinite().all()
