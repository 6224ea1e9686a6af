"""Activations against transformers' table, name by name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers.activations import ACT2CLS, ACT2FN

from assembler.blocks.activations import ACTIVATIONS, Activation, ActivationName, activation
from assembler.errors import SpecError
from assembler.model.registry import default_registry

LEARNED = {"prelu", "xielu"}


def test_every_parameterless_name_of_transformers_is_known():
    assert set(get_args(ActivationName)) == set(ACTIVATIONS) == set(ACT2CLS) - LEARNED


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_equals_transformers(name):
    x = torch.cat((torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-4, -1e-4])))
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_activations_with_tensors_are_refused_with_the_reason(name):
    with pytest.raises(SpecError, match=f"'{name}' owns learned tensors"):
        activation(name)
    with pytest.raises(ValidationError, match="owns learned tensors"):
        TypeAdapter(Activation).validate_python(name)


def test_a_learned_activation_is_a_block():
    with pytest.raises(SpecError, match=r"no name: activation: \{block: XIELU\}"):
        activation("xielu")
    spec = default_registry()["MLP"]
    mlp = spec(block="MLP", intermediate_size=3, activation={"block": "XIELU"})
    assert mlp.activation.block == "XIELU"
    assert spec(block="MLP", intermediate_size=3, activation="relu2").activation == "relu2"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SpecError, match=r"unknown activation 'slu'\. Did you mean 'silu'"):
        activation("slu")


def test_field_type_lists_the_names_in_its_schema():
    schema = TypeAdapter(Activation).json_schema()
    assert set(schema["enum"]) == set(ACTIVATIONS)
