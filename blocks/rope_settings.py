"""The settings of rotary position embeddings, one normal form for every published layout.

Field names follow the `rope_parameters` of Hugging Face configs. No torch here: configs are read
and checked long before a tensor exists.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

RopeStyle: TypeAlias = Literal["half", "half_reversed", "interleaved"]
RopeType: TypeAlias = Literal[
    "default", "linear", "dynamic", "ntk_alpha", "llama3", "yarn", "longrope"
]

_REQUIRED: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "max_position_embeddings"}),
    "ntk_alpha": frozenset({"alpha"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset({"original_max_position_embeddings"}),
    "longrope": frozenset({"short_factor", "long_factor", "original_max_position_embeddings"}),
}
_OPTIONAL: dict[str, frozenset[str]] = {
    "yarn": frozenset(
        {
            "factor",
            "max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "longrope": frozenset(
        {
            "factor",
            "max_position_embeddings",
            "attention_factor",
            "short_mscale",
            "long_mscale",
        }
    ),
}
_COMMON = frozenset({"type", "theta", "partial", "style"})


class RopeSettings(BaseModel):
    """How positions turn the queries and keys (RoFormer, Su et al., 2021) and how that stretches.

    A field that the type does not use is refused rather than ignored; null counts as not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: RopeType = Field(
        "default",
        description="How the frequencies are stretched to longer texts: default (not at all), "
        "linear, dynamic (NTK), ntk_alpha (NTK by a constant), llama3, yarn (Peng et al., 2023) or "
        "longrope (Ding et al., 2024).",
    )
    theta: float = Field(
        10000.0, gt=1, description="Base of the wavelengths; `rope_theta` in most configs."
    )
    partial: float = Field(
        1.0, gt=0, le=1, description="Share of each head that turns, from its first dimension on."
    )
    style: RopeStyle = Field(
        "half",
        description='Pairs that turn: "half" (d with d + dim/2), "half_reversed" (the same, turned '
        'the other way: nanochat) or "interleaved" (2d with 2d + 1).',
    )
    factor: float | None = Field(
        None, gt=0, description="How many times longer than in pre-training texts may get."
    )
    alpha: float | None = Field(
        None, gt=0, description="ntk_alpha: theta grows by alpha ** (dim / (dim - 2)) (Hunyuan)."
    )
    original_max_position_embeddings: int | None = Field(
        None, gt=0, description="Longest text of pre-training in tokens (llama3, yarn, longrope)."
    )
    max_position_embeddings: int | None = Field(
        None,
        gt=0,
        description="Longest text in tokens: where dynamic starts to stretch; for yarn and "
        "longrope its ratio to the original length stands in for an absent factor.",
    )
    low_freq_factor: float | None = Field(
        None, gt=0, description="llama3: wavelengths above original length / this are stretched."
    )
    high_freq_factor: float | None = Field(
        None, gt=0, description="llama3: wavelengths below original length / this are kept."
    )
    beta_fast: float | None = Field(
        None,
        gt=0,
        description="yarn: dimensions turning more often than this are kept; 32 if null.",
    )
    beta_slow: float | None = Field(
        None,
        gt=0,
        description="yarn: dimensions turning less often than this are stretched; 1 if null.",
    )
    mscale: float | None = Field(
        None,
        ge=0,
        description="yarn: weight of the log of the factor in the attention factor (DeepSeek-V2); "
        "counts only together with mscale_all_dim.",
    )
    mscale_all_dim: float | None = Field(
        None, ge=0, description="yarn: divides by the same expression with this weight."
    )
    attention_factor: float | None = Field(
        None,
        gt=0,
        description="yarn, longrope: multiplies cos and sin; derived from the factor if null.",
    )
    truncate: bool | None = Field(
        None, description="yarn: round the borders of the ramp to whole dimensions; true if null."
    )
    short_factor: tuple[float, ...] | None = Field(
        None, description="longrope: stretch of each frequency up to the original length."
    )
    long_factor: tuple[float, ...] | None = Field(
        None, description="longrope: stretch of each frequency in longer texts."
    )
    short_mscale: float | None = Field(
        None,
        gt=0,
        description="longrope: multiplies cos and sin up to the original length, in place of the "
        "attention factor (Phi-3.5-MoE).",
    )
    long_mscale: float | None = Field(
        None, gt=0, description="longrope: the same in longer texts; both or neither."
    )

    @model_validator(mode="after")
    def _check_fields_of_type(self) -> RopeSettings:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        required, usable = _REQUIRED[self.type], self.used_by(self.type)
        problems = []
        if missing := sorted(required - given):
            problems.append(f"rope type '{self.type}' needs {', '.join(missing)}")
        if unused := sorted(given - usable):
            uses = ", ".join(sorted(usable - _COMMON)) or "only theta, partial and style"
            problems.append(
                f"rope type '{self.type}' does not use {', '.join(unused)}; it uses {uses}"
            )
        if not problems:
            problems = self._find_contradictions()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _find_contradictions(self) -> list[str]:
        """What is wrong between fields that are all there."""
        problems = []
        if self.type == "llama3" and self.low_freq_factor > self.high_freq_factor:
            problems.append("high_freq_factor must not be less than low_freq_factor")
        if self.type == "yarn" and (self.beta_fast or 32) < (self.beta_slow or 1):
            problems.append("beta_fast must not be less than beta_slow")
        stretches = self.type == "yarn" or (
            self.type == "longrope" and self.attention_factor is None and self.short_mscale is None
        )
        if stretches and self.factor is None and self.max_position_embeddings is None:
            problems.append(f"rope type '{self.type}' needs factor or max_position_embeddings")
        if (self.short_mscale is None) != (self.long_mscale is None):
            problems.append("short_mscale and long_mscale need each other")
        if self.short_mscale is not None and self.attention_factor is not None:
            problems.append("attention_factor has no use beside short_mscale and long_mscale")
        if self.type == "longrope" and len(self.short_factor) != len(self.long_factor):
            problems.append(
                f"short_factor has {len(self.short_factor)} numbers, "
                f"long_factor {len(self.long_factor)}"
            )
        return problems

    @classmethod
    def used_by(cls, kind: RopeType) -> frozenset[str]:
        """The fields that settings of this type may have."""
        return _COMMON | _REQUIRED[kind] | _OPTIONAL.get(kind, frozenset())

    @property
    def stretch(self) -> float:
        """The factor, or where it is not given the ratio of the two lengths (yarn, longrope)."""
        if self.factor is not None:
            return self.factor
        return self.max_position_embeddings / self.original_max_position_embeddings
