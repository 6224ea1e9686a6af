"""The functions of wiring equations, on tensors and on numbers."""

from __future__ import annotations

import math

import pytest
import torch

from assembler.blocks.functions import FUNCTIONS, sigmoid, softcap


@pytest.mark.parametrize("name", ["sqrt", "exp", "log", "tanh"])
def test_number_and_tensor_agree_with_math(name):
    function = FUNCTIONS[name]
    expected = getattr(math, name)(0.7)
    assert function(0.7) == expected
    got = function(torch.tensor([0.7], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))


def test_softcap_bounds_and_keeps_small_values():
    x = torch.tensor([-1e4, -0.01, 0.0, 0.01, 1e4])
    got = softcap(x, 30.0)
    torch.testing.assert_close(got, 30.0 * torch.tanh(x / 30.0))
    assert got.abs().max() <= 30.0
    assert softcap(2.0, 4.0) == pytest.approx(4.0 * math.tanh(0.5))


def test_min_and_max_compare_numbers():
    assert FUNCTIONS["min"](2, 3.5) == 2
    assert FUNCTIONS["max"](2, 3.5) == 3.5


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        FUNCTIONS["eval"] = eval


def test_sigmoid_of_a_number_and_of_a_tensor():
    for x in (-900.0, -2.5, 0.0, 0.7, 900.0):
        expected = torch.tensor(x, dtype=torch.float64).sigmoid()
        assert sigmoid(x) == pytest.approx(float(expected), abs=1e-15)
        assert sigmoid(torch.tensor(x, dtype=torch.float64)) == expected
