"""Dense models that differ from Llama in norms, wiring, positions or scales."""

from __future__ import annotations

from cases.case import Case

CASES: tuple[Case, ...] = ()
