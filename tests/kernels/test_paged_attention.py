"""Both paged backends against the definition, on caches that are NaN wherever nobody may look."""

from __future__ import annotations

import pytest
import torch
from naive_attention import head_options, make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.paged_attention_torch import MAX_KEYS_PER_GROUP, paged_attention_torch

MIXED = {"query_lens": [1, 5, 1, 9, 3, 1], "context_lens": [23, 5, 1, 17, 30, 8]}
DECODE = {"query_lens": [1] * 5, "context_lens": [1, 4, 5, 70, 33]}


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    return attention_backend(request.param, "cpu")


def check(backend, step, *, ulps=16, options=None, **more):
    options = options or AttentionOptions(**{"scale": 0.3, **more})
    got = backend.attend(step.q, step.k_cache, step.v_cache, step.batch, options)
    assert got.dtype == step.q.dtype
    tolerance = ulps * torch.finfo(step.q.dtype).eps
    torch.testing.assert_close(got.double(), step.expected(options), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (9, 3), (8, 2), (8, 1)])
def test_grouped_heads(backend, shape, heads, kv_heads):
    check(backend, make_step(**shape, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 128])
def test_head_dims(backend, head_dim):
    step = make_step([1, 4], [6, 9], heads=2, kv_heads=1, head_dim=head_dim)
    check(backend, step, scale=head_dim**-0.5)


def test_values_of_another_width(backend):
    check(backend, make_step([1, 4], [6, 9], head_dim=24, head_dim_v=40))


@pytest.mark.parametrize("page_size", [1, 3, 16, 256])
def test_page_sizes(backend, page_size):
    check(backend, make_step(**MIXED, page_size=page_size))


@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize("window", [1, 4, 7, 66, 100])
def test_windows_read_nothing_older(backend, shape, window):
    check(backend, make_step(**shape, window=window), window=window)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
def test_softcap(backend, shape, window):
    check(backend, make_step(**shape, window=window), scale=1.5, window=window, softcap=2.0)


@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_chunks_read_no_other_chunk(backend, shape, chunk, window):
    check(backend, make_step(**shape, chunk=chunk, window=window), chunk=chunk, window=window)


HEAD_OPTIONS = {
    "sinks": (["sinks"], {}),
    "sinks, window": (["sinks"], {"window": 6}),
    "alibi": (["alibi_slopes"], {}),
    "alibi rounded": (["alibi_slopes"], {"alibi_rounded": True}),
    "all": (["sinks", "alibi_slopes"], {"softcap": 3.0, "window": 9, "chunk": 7}),
}


@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (9, 3), (5, 1)])
@pytest.mark.parametrize("name", HEAD_OPTIONS)
def test_numbers_of_each_head(backend, shape, heads, kv_heads, name):
    names, more = HEAD_OPTIONS[name]
    options = head_options(heads, *names, **more)
    sight = {"window": options.window, "chunk": options.chunk}
    check(backend, make_step(**shape, heads=heads, kv_heads=kv_heads, **sight), options=options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rounded", [False, True])
def test_biases_are_precise_whatever_the_dtype(backend, dtype, rounded):
    options = head_options(4, "sinks", "alibi_slopes", alibi_rounded=rounded)
    check(
        backend, make_step([1, 9], [300, 300], dtype=dtype, page_size=16), options=options, ulps=4
    )


@pytest.mark.parametrize("shape", [MIXED, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize(
    ("heads", "head_dim", "value_dim"), [(1, 24, 16), (3, 40, 24), (16, 16, 16), (40, 336, 272)]
)
def test_latent_values_are_a_part_of_the_keys(backend, shape, heads, head_dim, value_dim):
    step = make_step(
        **shape, heads=heads, kv_heads=1, head_dim=head_dim, head_dim_v=value_dim, latent=True
    )
    check(backend, step, scale=head_dim**-0.5, value_dim=value_dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latent_with_other_options(backend, dtype):
    options = head_options(6, "sinks", softcap=3.0, window=8, value_dim=24)
    about = {"heads": 6, "kv_heads": 2, "head_dim": 32, "head_dim_v": 24, "latent": True}
    check(backend, make_step(**MIXED, **about, window=8, dtype=dtype), options=options, ulps=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_dtypes(backend, dtype, softcap):
    ulps = 16 if dtype == torch.float32 else 4
    check(backend, make_step(**MIXED, dtype=dtype), softcap=softcap, ulps=ulps)


def test_contexts_of_many_tiles(backend):
    step = make_step([1, 90], [150, 200], heads=6, page_size=16)
    check(backend, step)
    check(backend, make_step([1, 90], [150, 200], page_size=16, window=75), window=75)


def test_a_prompt_in_chunks_equals_the_prompt_at_once(backend):
    """The queries of a chunk are the last of its context, whatever the chunks were."""
    whole = make_step([14], [14])
    options = AttentionOptions(scale=0.3)
    at_once = backend.attend(whole.q, whole.k_cache, whole.v_cache, whole.batch, options)
    for start, end in ((0, 5), (5, 6), (6, 14)):
        step = make_step([end - start], [end])
        step.batch.page_table[:] = whole.batch.page_table[:, : step.batch.page_table.shape[1]]
        chunk = backend.attend(
            whole.q[start:end], whole.k_cache, whole.v_cache, step.batch, options
        )
        torch.testing.assert_close(chunk, at_once[start:end], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("query_lens", [[0, 3, 0, 1], [0, 1, 0, 1], [5, 0, 0, 2]])
def test_sequences_without_a_query(backend, query_lens):
    check(backend, make_step(query_lens, [6, 5, 9, 7]))


def test_equal_prompts_side_by_side(backend):
    check(backend, make_step([6, 6, 6, 1], [6, 6, 11, 4]))


def test_queries_may_be_a_slice_of_a_fused_projection(backend):
    step = make_step(**DECODE)
    fused = torch.cat([torch.full_like(step.q, torch.nan), step.q], dim=1)
    step.q = fused[:, step.q.shape[1] :]
    assert not step.q.is_contiguous()
    check(backend, step)


def test_no_tokens_at_all(backend):
    step = make_step([1], [3])
    step.batch.cu_seqlens_q[1] = 0
    options = AttentionOptions(scale=1.0)
    out = backend.attend(step.q[:0], step.k_cache, step.v_cache, step.batch, options)
    assert out.shape == (0, 4, 16)


@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("latent", [False, True])
def test_split_contexts_merge_to_the_whole(splits, window, latent):
    from assembler.kernels.paged_attention_triton import paged_attention_triton

    about = {"heads": 6, "head_dim": 24, "head_dim_v": 16, "latent": latent, "page_size": 16}
    step = make_step([1, 1, 1], [1, 300, 190], **about, window=window)
    value_dim = 16 if latent else None
    options = head_options(6, "sinks", window=window, value_dim=value_dim)
    got = paged_attention_triton(
        step.q, step.k_cache, step.v_cache, step.batch, options, splits=splits
    )
    torch.testing.assert_close(got.double(), step.expected(options), atol=2e-6, rtol=1e-5)


def test_decode_beyond_one_group_is_attended_in_several():
    contexts = [MAX_KEYS_PER_GROUP // 2 + 1, 3, MAX_KEYS_PER_GROUP // 2 + 2, 50]
    step = make_step([1] * 4, contexts, heads=1, kv_heads=1, page_size=256)
    options = AttentionOptions(scale=0.3)
    got = paged_attention_torch(step.q, step.k_cache, step.v_cache, step.batch, options)
    (groups,) = step.batch.derived.values()
    assert [group.size for group in groups] == [2, 1, 1]
    for s in range(4):
        logits = step.keys[s][:, 0].double() @ step.q[s, 0].double() * 0.3
        want = logits.softmax(0) @ step.values[s][:, 0].double()
        torch.testing.assert_close(got[s, 0].double(), want, atol=2e-6, rtol=1e-5)


def test_layers_of_a_step_share_the_index_tables():
    step = make_step(**MIXED)
    for window in (None, 4, None, 4):
        options = head_options(4, "alibi_slopes", window=window)
        paged_attention_torch(step.q, step.k_cache, step.v_cache, step.batch, options)
    assert len(step.batch.derived) == 2


def test_one_backend_serves_steps_of_all_sizes_and_modes():
    backend = attention_backend("torch", "cpu")
    for query_lens, context_lens in (([1, 1], [9, 3]), ([40, 1], [40, 61]), ([1], [5])):
        for dtype in (torch.float32, torch.bfloat16):
            step = make_step(query_lens, context_lens, dtype=dtype)
            check(backend, step)
            with torch.inference_mode():
                check(backend, step)
