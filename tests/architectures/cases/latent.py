"""Latent attention (MLA): DeepSeek and its kin."""

from __future__ import annotations

from cases.case import Case

CASES: tuple[Case, ...] = ()
