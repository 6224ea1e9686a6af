"""Fields with a value of its own for each layer: `theta: {per_layer: "${hf:layer_thetas}"}`.

What is given is a list, one value a layer, or an expression in the layer index `i`. Layers that
come out with other fields are of other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from assembler.errors import SpecError
from assembler.model import expressions
from assembler.model.field_errors import KeyPath, shown
from assembler.model.names import LAYER_INDEX, PER_LAYER


def is_per_layer(value: Any) -> bool:
    """Whether a field's value says what it is for each layer."""
    return isinstance(value, Mapping) and set(value) == {PER_LAYER}


def differs_by_layer(value: Any) -> bool:
    """Whether a field has a value for each layer somewhere below `value`."""
    if not isinstance(value, Mapping):
        return False
    return is_per_layer(value) or any(map(differs_by_layer, value.values()))


class _WrongValue(Exception):
    """What is given at `key` of a block has no value for the layer; the cause says why."""

    def __init__(self, key: KeyPath) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class LayerFields:
    """The fields of one layer's blocks."""

    index: int
    count: int  # layers of the model
    report: Callable[[KeyPath, str], None]

    def of(
        self, block: Mapping[str, Any], key_of: Callable[[KeyPath], KeyPath]
    ) -> Mapping[str, Any] | None:
        """The entry of a block as it is in this layer; None if what it says is wrong.

        `key_of` gives the key in the YAML of one inside the block.
        """
        try:
            return self._resolved(block, ())
        except _WrongValue as wrong:
            place = f"in layer {self.index} of {self.count}"
            self.report(key_of(wrong.key), f"{wrong.__cause__} ({place})")
            return None

    def _resolved(self, value: Any, key: KeyPath) -> Any:
        """`value`, which stands at `key` of a block."""
        if not isinstance(value, Mapping):
            return value
        if not is_per_layer(value):
            return {name: self._resolved(item, (*key, name)) for name, item in value.items()}
        try:
            return self._value(value[PER_LAYER])
        except SpecError as error:
            raise _WrongValue(key) from error

    def _value(self, given: Any) -> Any:
        if isinstance(given, str):
            return expressions.evaluate(expressions.parse(given), self._named)
        if not isinstance(given, list):
            raise SpecError(f"{PER_LAYER} takes a list or an expression in i (got {shown(given)})")
        if self.index >= len(given):
            wanted = f"{self.count} are wanted, one for each layer"
            raise SpecError(f"{PER_LAYER} has {len(given)} values, {wanted}")
        return given[self.index]

    def _named(self, name: str) -> int:
        if name != LAYER_INDEX:
            raise SpecError(f"unknown name '{name}': the only one is the layer's index, i")
        return self.index
