"""Absolute positions against those of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from block_harness import build_context, fill, randn
from transformers.models.ctrl.modeling_ctrl import positional_encoding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from assembler.blocks.context import ForwardContext
from assembler.blocks.positions import LearnedPositions, SinusoidalPositions
from assembler.errors import SpecError

WIDTH = 48
TOKENS = torch.tensor([[3, 59, 0, 17], [1, 1, 30, 29]])


@pytest.mark.parametrize("offset", [0, 2])
def test_positions_equal_opt_dense_and_paged(offset):
    reference = OPTLearnedPositionalEmbedding(20, WIDTH)
    ours = LearnedPositions(build_context(WIDTH), count=22 - offset, offset=offset)
    ours.load_state_dict(reference.state_dict())
    ctx = ForwardContext.dense(4)
    expected = reference(None, position_ids=ctx.positions[None] + offset - 2)
    assert torch.equal(ours(TOKENS, ctx), expected[0])
    paged = replace(ctx, positions=torch.tensor([3, 0, 1]))
    assert torch.equal(ours(TOKENS[0, :3], paged), expected[0, [3, 0, 1]])


def test_position_beyond_the_table_is_an_error():
    positions = fill(LearnedPositions(build_context(WIDTH), count=4))
    with pytest.raises(IndexError):
        positions(torch.zeros(1, 5, dtype=torch.int64), ForwardContext.dense(5))


@pytest.mark.parametrize("width", [4, 46, 48])
def test_sinusoids_equal_ctrl_and_xglm(width):
    ctx = ForwardContext.dense(30)
    x = randn(2, 30, width)
    ctrl = SinusoidalPositions(build_context(width))
    torch.testing.assert_close(ctrl(x, ctx), positional_encoding(30, width, torch.float))
    xglm = SinusoidalPositions(build_context(width), spacing="tensor2tensor", offset=2)
    expected = XGLMSinusoidalPositionalEmbedding(64, width, 1)(torch.arange(30)[None])
    torch.testing.assert_close(xglm(x, ctx), expected[0])
    paged = replace(ctx, positions=torch.tensor([3, 0, 29]))
    torch.testing.assert_close(xglm(x[0, :3], paged), expected[0, [3, 0, 29]])


def test_sinusoids_own_nothing_and_keep_float32_angles():
    with torch.device("meta"):
        positions = SinusoidalPositions(build_context(WIDTH))
    assert not list(positions.parameters()) and not positions.state_dict()
    positions.reset_buffers("cpu")
    positions.to(torch.bfloat16)
    assert positions.frequencies.dtype == torch.float32
    ctx = replace(ForwardContext.dense(2), positions=torch.tensor([3000, 3001]))
    got = positions(randn(2, WIDTH, dtype=torch.bfloat16), ctx)
    exact = SinusoidalPositions(build_context(WIDTH))(randn(2, WIDTH), ctx)
    assert got.dtype == torch.bfloat16 and torch.equal(got, exact.bfloat16())


@pytest.mark.parametrize("width", [2, 47])
def test_a_width_without_halves_is_refused(width):
    with pytest.raises(SpecError, match=rf"positions: sines and cosines .* not {width}"):
        SinusoidalPositions(build_context(width, path="positions"))
