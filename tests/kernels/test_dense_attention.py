"""Dense attention against the definition, its gradients, and what it does not copy."""

from __future__ import annotations

import pytest
import torch
from naive_attention import attend_token, head_options

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dense_attention import biased_attention, dense_attention


def random_qkv(length, heads, kv_heads, head_dim, head_dim_v=None, dtype=torch.float32, batch=2):
    random = torch.Generator().manual_seed(length)
    shapes = ((heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim_v or head_dim))
    return [torch.randn(batch, length, *shape, generator=random).to(dtype) for shape in shapes]


def expected_dense(q, k, v, options):
    return torch.stack(
        [
            torch.stack(
                [attend_token(q[b, i], k[b, : i + 1], v[b, : i + 1], options) for i in range(n)]
            )
            for b, n in enumerate([q.shape[1]] * q.shape[0])
        ]
    )


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("window", [None, 1, 4, 11, 40])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (8, 1)])
def test_equals_the_definition(heads, kv_heads, window, softcap):
    q, k, v = random_qkv(11, heads, kv_heads, 16)
    options = AttentionOptions(scale=0.3, window=window, softcap=softcap)
    got = dense_attention(q, k, v, options)
    assert got.shape == (2, 11, heads, 16) and got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected_dense(q, k, v, options), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize(("length", "head_dim", "head_dim_v"), [(1, 16, 16), (7, 24, 16)])
def test_single_tokens_and_values_of_another_width(length, head_dim, head_dim_v, softcap):
    q, k, v = random_qkv(length, 4, 2, head_dim, head_dim_v)
    options = AttentionOptions(scale=0.2, softcap=softcap)
    got = dense_attention(q, k, v, options)
    want = expected_dense(q, k, v, options)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(
    "names", [["sinks"], ["alibi_slopes"], ["sinks", "alibi_slopes"]], ids="-".join
)
@pytest.mark.parametrize("rounded", [False, True])
def test_numbers_of_each_head(names, chunk, softcap, rounded):
    q, k, v = random_qkv(11, 6, 2, 16)
    options = head_options(6, *names, chunk=chunk, softcap=softcap, alibi_rounded=rounded)
    want = expected_dense(q, k, v, options)
    torch.testing.assert_close(
        dense_attention(q, k, v, options).double(), want, atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("length", [1, 7])
def test_values_that_are_a_part_of_the_keys(length, softcap):
    q, k, _ = random_qkv(length, 4, 1, 24)
    options = head_options(4, "sinks", value_dim=16, softcap=softcap)
    want = expected_dense(q, k, k[..., :16], options)
    torch.testing.assert_close(
        dense_attention(q, k, None, options).double(), want, atol=2e-6, rtol=1e-5
    )


def test_blocks_of_queries_equal_all_at_once(monkeypatch):
    q, k, v = random_qkv(11, 6, 2, 16)
    options = head_options(6, "sinks", "alibi_slopes", window=5)
    whole = dense_attention(q, k, v, options)
    monkeypatch.setattr("assembler.kernels.dense_attention.MAX_LOGITS_PER_BLOCK", 500)
    torch.testing.assert_close(dense_attention(q, k, v, options), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_a_precise_softmax(dtype, softcap):
    q, k, v = random_qkv(33, 4, 2, 32, dtype=dtype)
    options = AttentionOptions(scale=0.3, softcap=softcap)
    got = dense_attention(q, k, v, options)
    assert got.dtype == dtype
    want = expected_dense(q, k, v, options)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, atol=4 * ulp, rtol=2 * ulp)


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_match_finite_differences(window, softcap):
    inputs = [t[:1].double().requires_grad_() for t in random_qkv(5, 4, 2, 4)]

    options = AttentionOptions(scale=0.5, window=window, softcap=softcap)

    def attention(q, k, v):
        return dense_attention(q, k, v, options)

    assert torch.autograd.gradcheck(attention, inputs)


def test_gradients_of_sinks_and_of_latent_values():
    q, k, _ = (t[:1].double().requires_grad_() for t in random_qkv(5, 4, 1, 6))
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)

    def attention(q, k, sinks):
        options = AttentionOptions(scale=0.5, window=4, value_dim=4, sinks=sinks)
        return dense_attention(q, k, None, options)

    assert torch.autograd.gradcheck(attention, (q, k, sinks))


def test_float32_gradients_of_grouped_heads_equal_those_in_float64():
    inputs = random_qkv(40, 6, 2, 16)
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in inputs]
        out = dense_attention(*leaves, AttentionOptions(scale=0.3))
        (out * torch.arange(out.numel(), dtype=dtype).view_as(out).sin()).sum().backward()
        gradients[dtype] = [leaf.grad.double() for leaf in leaves]
    torch.testing.assert_close(
        gradients[torch.float32], gradients[torch.float64], atol=1e-5, rtol=1e-4
    )


def test_positions_are_per_sequence():
    q, k, v = random_qkv(6, 4, 2, 16)
    keys = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])
    queries = torch.tensor([[5, 3, 4], [4, 8, 6]])
    for options in (AttentionOptions(scale=0.3, softcap=3.0), AttentionOptions(scale=0.3)):
        got = biased_attention(q[:, :3], k, v, options, queries, keys)
        for b in range(2):
            for i in range(3):
                seen = keys[b] <= queries[b, i]
                want = attend_token(q[b, i], k[b, seen], v[b, seen], options)
                torch.testing.assert_close(got[b, i].double(), want, atol=2e-6, rtol=1e-5)
