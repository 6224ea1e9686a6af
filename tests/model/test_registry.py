"""The schema of a block's YAML fields, as its constructor's signature gives it."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import ValidationError
from torch import nn
from toy_blocks import TOYS

from assembler.blocks.catalog import BLOCKS
from assembler.blocks.context import BuildContext
from assembler.model.registry import BlockRegistry, argument_docs, default_registry, summary


def test_fields_come_from_the_keyword_arguments() -> None:
    fields = TOYS["Mix"].model_fields
    assert list(fields) == ["block", "heads", "norm", "table", "window"]
    assert fields["heads"].is_required() and not fields["window"].is_required()
    assert fields["window"].default is None


def test_descriptions_come_from_the_args_section() -> None:
    fields = TOYS["Mix"].model_fields
    assert fields["heads"].description == "how many heads there are."
    assert fields["norm"].description == "inner norm."
    assert fields["window"].description is None
    assert (
        fields["block"].description
        == "Stands for attention: mixes over the length, reads the context."
    )


def test_the_schema_validates() -> None:
    spec = TOYS["Mix"].model_validate(
        {"block": "Mix", "heads": 2, "norm": {"block": "LayerNorm", "bias": False}}
    )
    assert spec.norm.block == "LayerNorm" and spec.norm.eps == 1e-5
    with pytest.raises(ValidationError):
        spec.heads = 3
    for wrong in ({"heads": 0}, {"heads": 2, "nrm": 1}, {"heads": 2, "norm": {"block": "Feed"}}):
        with pytest.raises(ValidationError):
            TOYS["Mix"].model_validate({"block": "Mix", **wrong})


def test_roles() -> None:
    assert TOYS.names("norm") == ["RMSNorm", "LayerNorm"]
    assert TOYS.names() == ["Embed", "Mix", "Feed", "Head", "RMSNorm", "LayerNorm"]
    assert (len(TOYS), "Feed" in TOYS, "Fed" in TOYS) == (6, True, False)


def test_a_short_form_stands_for_the_whole_block() -> None:
    attention = default_registry()["RopeAttn"]
    norm = {"block": "RMSNorm", "eps": 1e-3}

    def validated(qk_norm: dict) -> object:
        return attention.model_validate({"block": "RopeAttn", "num_heads": 2, "qk_norm": qk_norm})

    short, long = validated(norm), validated({"block": "QKNorm", "norm": norm})
    assert short == long and short.qk_norm.norm.eps == 1e-3
    assert short == attention.model_validate(short.model_dump())
    assert validated({"block": "QKNorm", "norm": norm, "over": "full"}) != long
    with pytest.raises(ValidationError, match=r"qk_norm.RMSNorm.over"):
        validated({**norm, "over": "full"})


def test_a_field_takes_blocks_of_its_role_and_their_short_forms() -> None:
    registry = default_registry()
    assert registry.accepted("qk_norm") == ["QKNorm", "RMSNorm", "LayerNorm"]
    assert registry.accepted("norm") == ["RMSNorm", "LayerNorm"]


class Documented(nn.Module):
    """One line
    that goes on.

    More.

    Args:
        a: The first,
            in two lines: with a colon.

        b: The second.

    Raises:
        ValueError: not an argument.
    """

    role: ClassVar[str] = "thing"

    def __init__(self, ctx: BuildContext, *, a: int, b: int = 3) -> None:
        super().__init__()


def test_docstrings() -> None:
    assert summary(Documented) == "One line that goes on."
    assert argument_docs(Documented) == {
        "a": "The first, in two lines: with a colon.",
        "b": "The second.",
    }


def test_a_role_with_one_block() -> None:
    registry = BlockRegistry([Documented])
    assert registry.names("thing") == ["Documented"]
    assert registry["Documented"].model_validate({"block": "Documented", "a": 1}).b == 3


@pytest.mark.parametrize("cls", BLOCKS, ids=lambda cls: cls.__name__)
def test_shipped_blocks_document_every_field(cls: type[nn.Module]) -> None:
    fields = default_registry()[cls.__name__].model_fields
    assert fields["block"].description
    assert set(argument_docs(cls)) == set(fields) - {"block"}
    assert all(info.description for info in fields.values())
