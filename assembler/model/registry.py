"""The blocks YAML may name, and the schema of their fields.

A block's YAML fields *are* the keyword-only arguments of its constructor. From that signature the
registry derives a frozen pydantic model, which validates a YAML entry, knows the nearest field
name for a typo and gives editors their JSON Schema. A field annotated with a `BlockRole` takes a
nested block of that role (`gate: {block: OutputGate}`). A block whose class names a `short_form`,
one of its fields, may be given as what that field holds: `{block: RMSNorm, eps: 1e-6}` then stands
for `{block: QKNorm, norm: {block: RMSNorm, eps: 1e-6}}`.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    create_model,
)
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.roles import BlockRole

# Parts of pydantic's error paths that stand for no key of the YAML.
PLAIN_TAG, BLOCK_TAG = "(plain)", "(block)"


class BlockSpec(BaseModel):
    """A validated YAML entry: which block, and its fields. Subclassed once for each block."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    block: str


class BlockRegistry(Mapping[str, type[BlockSpec]]):
    """Block name -> the pydantic model of its fields. Immutable once made."""

    def __init__(self, blocks: Iterable[type[nn.Module]]) -> None:
        self._classes = {block.__name__: block for block in blocks}
        self._specs: dict[str, type[BlockSpec]] = {}
        for name in self._classes:
            self._spec_of(name, ())

    def __getitem__(self, name: str) -> type[BlockSpec]:
        return self._specs[name]

    def __iter__(self):
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def block_class(self, name: str) -> type[nn.Module]:
        return self._classes[name]

    def names(self, role: str | None = None) -> list[str]:
        """Names of the blocks of that role (all of them without one)."""
        return [n for n, c in self._classes.items() if role in (None, c.role)]

    def accepted(self, role: str) -> list[str]:
        """Names of the blocks that a field of that role takes: its own, and their short forms."""
        own = self.names(role)
        short = [n for name in own for n in self._short_forms(name)]
        return list(dict.fromkeys([*own, *short]))

    def short_form(self, name: str) -> str | None:
        """The field of a block that may stand for the whole block, if it has one."""
        return getattr(self._classes[name], "short_form", None)

    def _short_forms(self, name: str) -> list[str]:
        """Names of the blocks that may stand for the block `name`."""
        field = self.short_form(name)
        if field is None:
            return []
        hints = typing.get_type_hints(self._classes[name].__init__, include_extras=True)
        return self.accepted(_role(hints[field]))

    def make(self, ctx: BuildContext, spec: BlockSpec) -> nn.Module:
        """Build the block `spec` describes, at the place `ctx` describes."""
        fields = {name: getattr(spec, name) for name in type(spec).model_fields if name != "block"}
        return self._classes[spec.block](ctx, **fields)

    def _spec_of(self, name: str, building: tuple[str, ...]) -> type[BlockSpec]:
        if name in self._specs:
            return self._specs[name]
        assert name not in building, f"blocks nest in a circle: {' > '.join((*building, name))}"
        cls = self._classes[name]
        hints = typing.get_type_hints(cls.__init__, include_extras=True)
        described = argument_docs(cls)
        fields: dict[str, Any] = {"block": (Literal[name], Field(description=summary(cls)))}
        for parameter in inspect.signature(cls.__init__).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            annotation = self._field_type(hints[parameter.name], (*building, name))
            default = ... if parameter.default is parameter.empty else parameter.default
            info = Field(default, description=described.get(parameter.name))
            fields[parameter.name] = (annotation, info)
        spec = create_model(name, __base__=BlockSpec, __doc__=summary(cls), **fields)
        self._specs[name] = spec
        return spec

    def _field_type(self, annotation: Any, building: tuple[str, ...]) -> Any:
        """`annotation` with every `BlockRole` replaced by the blocks that have the role."""
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            role = _role(annotation)
            return annotation if role is None else self._nested(role, building)
        if origin in (Union, types.UnionType):
            return self._union(args, building)
        # "yes" and "no" are texts in YAML 1.2; pydantic would take them for booleans.
        return StrictBool if annotation is bool else annotation

    def _union(self, args: tuple[Any, ...], building: tuple[str, ...]) -> Any:
        """Alternatives; of a plain value and a block, only the one that was meant is checked."""
        members = tuple(self._field_type(a, building) for a in args)
        is_block = [_role(a) is not None for a in args]
        if not any(is_block) or types.NoneType in args:
            return Union[members]  # noqa: UP007
        tagged = tuple(
            Annotated[member, Tag(BLOCK_TAG if nested else PLAIN_TAG)]
            for member, nested in zip(members, is_block, strict=True)
        )
        return Annotated[Union[tagged], Discriminator(_tag_of)]  # noqa: UP007

    def _nested(self, role: str, building: tuple[str, ...]) -> Any:
        members = tuple(self._spec_of(name, building) for name in self.accepted(role))
        assert members, f"no block has the role '{role}'"
        if len(members) == 1:
            return members[0]
        union = Annotated[Union[members], Field(discriminator="block")]  # noqa: UP007
        whole = {short: n for n in self.names(role) for short in self._short_forms(n)}
        if not whole:
            return union
        return Annotated[union, AfterValidator(lambda spec: self._in_full(spec, whole))]

    def _in_full(self, spec: BlockSpec, whole: Mapping[str, str]) -> BlockSpec:
        """`spec`, or the block that it is the short form of by `whole` (short form -> block)."""
        name = whole.get(spec.block)
        if name is None:
            return spec
        return self._specs[name](block=name, **{self.short_form(name): spec})


def _role(annotation: Any) -> str | None:
    """The role of the blocks that a field of this type holds; None if it holds none."""
    if typing.get_origin(annotation) is not Annotated:
        return None
    marks = typing.get_args(annotation)[1:]
    return next((mark.role for mark in marks if isinstance(mark, BlockRole)), None)


def _tag_of(value: Any) -> str:
    return BLOCK_TAG if isinstance(value, Mapping | BlockSpec) else PLAIN_TAG


@cache
def default_registry() -> BlockRegistry:
    """The registry of all blocks that come with this package."""
    from assembler.blocks.catalog import BLOCKS

    return BlockRegistry(BLOCKS)


def summary(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def argument_docs(cls: type) -> dict[str, str]:
    """The `Args:` lines of a class's (or its constructor's) docstring: name -> description."""
    found: dict[str, str] = {}
    for doc in (cls.__doc__, cls.__init__.__doc__):
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(doc or ""), re.M)
        if section is None:
            continue
        for entry in re.split(r"\n(?= {4}\w+:)", "\n" + section.group(1).rstrip()):
            name, _, text = entry.strip().partition(":")
            if name.isidentifier():
                found[name] = " ".join(text.split())
    return found
