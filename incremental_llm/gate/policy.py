"""What a candidate has to show before it may serve. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from incremental_llm.errors import ConfigError


class GatePolicy(BaseModel):
    """What a candidate has to show; shares are of 1, never points of 100."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    margin: float = Field(
        default=0.10, gt=0, lt=1, description="an old suite's difference must be above -margin with confidence"
    )
    margins: Mapping[str, float] = Field(default_factory=dict, description="other margins for single suites, by name")
    min_gain: float = Field(
        default=0.0, ge=0, lt=1, description="a new suite's difference must be above this with confidence"
    )
    min_items: int = Field(default=30, ge=1, description="the fewest items of a new or old suite")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="of every interval, two-sided; 0.95 puts its lower end at 2.5 %"
    )
    max_negative_flips: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="largest share of old suites' items that may be right before and wrong now",
    )
    max_correction_losses: float = Field(
        default=0.05, ge=0, le=1, description="largest share of corrections accepted earlier that may be lost"
    )
    min_corrections: int = Field(  # with 5 of 5 a sign test at 95 % proves nothing
        default=10, ge=6, description="the fewest of the increment's own corrections that can stand in for a new suite"
    )
    resamples: int = Field(default=10_000, ge=1000, description="resamples of the paired bootstrap")
    seed: int = Field(default=0, ge=0, description="of the bootstrap")

    @field_validator("margins", mode="after")
    @classmethod
    def _check_margins(cls, margins: Mapping[str, float]) -> Mapping[str, float]:
        for suite, margin in margins.items():
            if not 0 < margin < 1:
                raise ValueError(f"expected the margin of {suite!r} between 0 and 1, found {margin}")
        return MappingProxyType(dict(margins))

    @field_serializer("margins")
    def _plain_margins(self, margins: Mapping[str, float]) -> dict[str, float]:
        return dict(margins)

    def margin_of(self, suite: str) -> float:
        """The margin that applies to a suite."""
        return self.margins.get(suite, self.margin)

    def check_names(self, suites: Collection[str]) -> None:
        """Compare the names under `margins` with the suites there are; call it before anything is trained.

        Raises:
            ConfigError: a margin for a suite that does not exist, which would never apply.
        """
        for name in self.margins:
            if name not in suites:
                close = difflib.get_close_matches(name, sorted(suites), n=1)
                hint = f", did you mean {close[0]!r}?" if close else "."
                raise ConfigError(f"gate.margins names a suite {name!r} that does not exist{hint}")
