"""The sampler draws the same tokens through the Triton kernel as in plain torch."""

from __future__ import annotations

import pytest
import torch

from assembler.engine import fused_sampling
from assembler.engine.host_copies import to_device
from assembler.engine.sampler import Sampler
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence
from assembler.kernels import fused, sampling_triton

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 3},
    {"top_k": 5},
    {"top_k": 5, "top_p": 0.7, "seed": 8},
    {"top_p": 0.9, "temperature": 1.5},
    {"min_p": 0.1},
    {"top_k": -1, "min_p": 0.02, "top_p": 0.8, "temperature": 2.0, "seed": 1},
    {"logit_bias": {4: 50.0}},
    {"allowed_token_ids": [3, 90], "seed": 5},
]


@pytest.mark.parametrize("vocab", [97, 256])
def test_the_same_tokens(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = 2 * torch.randn(len(SETTINGS) + 2, vocab, generator=generator)
    logits[-2], logits[-1, 3] = -torch.inf, torch.nan
    drawn = {}
    for choice in ("never", "always"):
        monkeypatch.setattr(fused, "fused_choice", lambda choice=choice: choice)
        params = [SamplingParams(**s) for s in (*SETTINGS, {"top_p": 0.5}, {"top_k": 3})]
        rows = [Sequence("r", [1], p, max_length=100) for p in params]
        drawn[choice] = Sampler(seed=2).sample(logits, rows)
        assert [row.sampling.failure is None for row in rows] == [True] * len(SETTINGS) + [
            False
        ] * 2
    assert drawn["always"] == drawn["never"]
    assert drawn["always"][-2:] == [None, None] and drawn["always"][8] == 4


def test_settings_are_sent_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the logits are handed to the kernel as they are."""
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    sent, given = [], []

    def counted(values, dtype, device):
        sent.append(values)
        return to_device(values, dtype, device)

    monkeypatch.setattr(fused_sampling, "to_device", counted)
    launch = sampling_triton.sample_by_number
    monkeypatch.setattr(
        sampling_triton, "sample_by_number", lambda *args: given.append(args[0]) or launch(*args)
    )
    logits = torch.randn(3, 97, generator=torch.Generator().manual_seed(0)).bfloat16()
    greedy = [Sequence("r", [1], SamplingParams(temperature=0), max_length=9) for _ in range(3)]
    drawing = [Sequence("r", [1], SamplingParams(top_k=3), max_length=9) for _ in range(3)]
    sampler = Sampler(seed=2)
    for rows, copies in ((greedy, 1), (greedy, 0), (greedy[:2], 1), (drawing, 2), (drawing, 1)):
        sent.clear()
        tokens = sampler.sample(logits[: len(rows)], rows)
        assert len(sent) == copies
        if rows is not drawing:
            assert tokens == logits[: len(rows)].float().argmax(-1).tolist()
    assert all(each.dtype == torch.bfloat16 for each in given)
    assert given[0].data_ptr() == logits.data_ptr()
