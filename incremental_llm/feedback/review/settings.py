"""The settings of the review queue, each with its unit and default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.feedback.review.items import Kind


class ReviewSettings(BaseModel):
    """How the queue is worked through. None of it decides the result of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    two_person: tuple[Kind, ...] = Field(
        default=("safety",), description="kinds of which two reviewers must say the same before it counts"
    )
    lease_seconds: float = Field(
        default=900.0, gt=0, description="seconds after which an item that was claimed and not decided is free again"
    )
    seed_share: float = Field(
        default=0.05, ge=0, lt=1, description="share of a reviewer's items that are seeded ones with a known verdict"
    )
    narrow: int = Field(
        default=1, ge=0, description="people by which a majority may lead and still go to review; 0: ties only"
    )
