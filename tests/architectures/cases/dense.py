"""Dense models that differ from Llama in norms, wiring, positions or scales."""

from __future__ import annotations

from cases.case import NARROW, TIED, Case, family

_apertus = family("apertus", "ApertusConfig", NARROW)
_bitnet = family("bitnet", "BitNetConfig", NARROW)

CASES: tuple[Case, ...] = (
    _apertus("biases", {"attention_bias": True}),
    _bitnet("tied", TIED),
)
