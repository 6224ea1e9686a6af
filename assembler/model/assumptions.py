"""`assumes:` of a conf: config.json fields with values that it does not cover, refused by name.

A flag of a config class that changes what the model computes, and that no equation or block of the
conf says anything about, would otherwise be ignored without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from assembler.model.config_fields import ConfigFields, Missing


def broken_assumptions(
    assumes: Mapping[str, Any], fields: ConfigFields
) -> Iterator[tuple[str, str]]:
    """The entries of `assumes` that config.json contradicts: (field, what is wrong).

    A field that is absent or null leaves the default, which is what the conf assumes.
    """
    for field, covered in assumes.items():
        found = fields.get(field)
        if found is None or isinstance(found, Missing) or found == covered:
            continue
        wanted = "null" if covered is None else repr(covered)
        yield field, f"{fields.source} has {found!r}, and this conf covers only {wanted}"
