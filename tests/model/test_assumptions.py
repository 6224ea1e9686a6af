"""A config flag that changes the model and that the conf says nothing about is refused."""

from __future__ import annotations

import pytest

from assembler.errors import SpecError
from assembler.model.assumptions import broken_assumptions
from assembler.model.compose import load_spec
from assembler.model.config_fields import ConfigFields

GPT2 = {
    "vocab_size": 11,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "layer_norm_epsilon": 1e-5,
}


@pytest.mark.parametrize("config", [{}, {"flag": None}, {"flag": False}, {"other": True}])
def test_a_field_that_is_absent_null_or_as_assumed_is_fine(config: dict) -> None:
    assert list(broken_assumptions({"flag": False}, ConfigFields(config))) == []


@pytest.mark.parametrize(
    ("assumes", "value"), [({"a|b": False}, True), ({"a|b": None}, {"c": 1}), ({"a|b": 0}, 8)]
)
def test_any_other_value_is_named_with_the_one_that_is_covered(
    assumes: dict, value: object
) -> None:
    [(field, problem)] = broken_assumptions(assumes, ConfigFields({"b": value}, "the config"))
    assert field == "a|b"
    assert problem.startswith(f"the config has {value!r}, and this conf covers only ")


def test_a_shipped_conf_refuses_what_it_does_not_compute() -> None:
    load_spec("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": False})
    with pytest.raises(SpecError, match=r"gpt2\.yaml:\d+: assumes\.scale_attn_by_inverse") as error:
        load_spec("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True})
    assert "config.json has True, and this conf covers only False" in str(error.value)


@pytest.mark.parametrize("conf", ["gpt2", "gptj"])
def test_a_flag_that_is_off_is_covered_where_it_is_inherited(conf: str) -> None:
    config = GPT2 | {"rotary_dim": 4}
    silent, off = (load_spec(conf, config | flag) for flag in ({}, {"add_cross_attention": False}))
    assert off == silent
