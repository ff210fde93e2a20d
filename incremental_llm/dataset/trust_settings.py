"""The settings of trust: how far one person, a few new ones or one repeated message can move a night."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrustSettings(BaseModel):
    """How far one person, a few new accounts or one repeated message can move a night; see docs/trust.md.

    A share is one of the loss weight of a kind of example (SFT, pairs, unpaired): each kind is a phase of its own. A
    share of less than twice an equal one is never asked for: of five people each may have 0.4, whatever the setting
    says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    enabled: bool = Field(True, description="false: none of these, and nothing is held or scaled")

    conflict_margin: int = Field(1, ge=1, description="distinct users more that one side of a conflict needs to win")
    pair_quorum: int = Field(
        1, ge=1, description="distinct users that a pair needs; from 2 on young accounts do not count"
    )
    user_topic_cap: int = Field(
        20,
        ge=1,
        description="a user's thumbs, preferences and rephrasings on one topic (metadata.topic, else the question)",
    )

    young_days: float = Field(7.0, ge=0, description="days since a person's first event for an account to be young")
    young_weight: float = Field(0.5, ge=0, le=1, description="how much of a person a young account is, in weights")
    young_alone_from: int = Field(
        3,
        ge=1,
        description="young accounts that say the same, with nobody else, from which it is held; 1: always held",
    )

    known_people: int = Field(
        3,
        ge=1,
        description="people, young accounts aside, who must have been served a message or a phrase for it to be known",
    )

    user_share: float = Field(0.1, gt=0, le=1, description="largest share of a kind's loss weight that one carries")
    cluster_share: float = Field(0.1, gt=0, le=1, description="largest share of near-duplicate replies, together")
    cluster_similarity: float = Field(
        0.7, gt=0, le=1, description="Jaccard similarity of words and word pairs from which replies are near duplicates"
    )
    cap_reviewers: bool = Field(
        False, description="whether shares and suspicious lift bind reviewers' corrections; a team has few reviewers"
    )
    max_imbalance: float = Field(
        4.0, ge=1, description="largest ratio of undesirable to desirable loss weight, and the other way round"
    )

    balance_people: int = Field(
        3, ge=1, description="people, young accounts aside, that each side needs for the two to be balanced"
    )

    quarantine_hours: float = Field(0.0, ge=0, description="hours that an event waits in the log before it is used")

    lift_score: float = Field(
        10.83, gt=0, description="log-likelihood ratio (1 degree of freedom) from which a phrase's lift is suspicious"
    )
    lift_ratio: float = Field(
        10.0, ge=1, description="how many times as frequent as before such a phrase must be; common words vary too"
    )
    lift_min_examples: int = Field(5, ge=2, description="examples that must hold such a phrase")
    lift_min_people: int = Field(
        3,
        ge=1,
        description="people, young accounts aside, that must back it, or its examples are held; 1: never. A night of "
        "fewer than twice so many people holds none",
    )

    @property
    def in_effect(self) -> TrustSettings:
        """These, or what changes nothing where they are not enabled."""
        return self if self.enabled else OFF

    @model_validator(mode="after")
    def _young_have_a_weight(self) -> Self:
        if self.enabled and self.young_weight == 0 and self.young_alone_from > 1 and self.young_days > 0:
            raise ValueError(
                "young_weight 0 trains nothing of young accounts and counts it as used: expected more, or "
                "young_alone_from 1, which leaves it out"
            )
        return self


OFF = TrustSettings(
    enabled=False,
    user_topic_cap=2**31,
    young_days=0.0,
    young_weight=1.0,
    user_share=1.0,
    cluster_share=1.0,
    max_imbalance=1e9,
    lift_score=1e9,
    lift_min_people=1,
)
"""Settings that change nothing."""
