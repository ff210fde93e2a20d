"""What a moderator outside says of a reply, as an item of the queue."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.feedback.events import Id, Interaction
from incremental_llm.feedback.review.items import Kind, Proposal, Voice

Flagged = Literal["added", "joined", "duplicate"]
"""joined: the reply's item is there, and not decided yet; it has this verdict too, and is at least as urgent."""


class Flag(BaseModel):
    """A moderator's verdict on the reply of an interaction, such as `self_harm`, and how sure it is, 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    interaction: Id
    kind: Literal["safety", "moderation"]
    verdict: str = Field(min_length=1, max_length=200)
    confidence: float = Field(ge=0, le=1)


def flagged(flag: Flag, served: Interaction, by: str) -> Proposal:
    """The item for a flag by the moderator `by`.

    The surer a moderator is of a safety flag, the sooner somebody should look; of other verdicts, the less sure it is.
    """
    return Proposal(
        kind=flag.kind,
        reason=flag.verdict,
        prompt=served.messages,
        reply=served.reply,
        interaction=served.id,
        voices=(sure(by, flag.verdict, flag.confidence),),
        sources=(served.id,),
        authors=(served.user,),
        priority=urgency(flag.kind, flag.confidence),
        about=served.id,
    )


def joined(known: Proposal, further: Proposal) -> Proposal | None:
    """An item with one more verdict on its reply, as urgent as the more urgent one; None where it says nothing new."""
    voices = tuple(voice for voice in further.voices if voice not in known.voices)
    if not voices:
        return None
    first = max(known, further, key=lambda one: one.priority)
    return known.model_copy(
        update={"voices": (*known.voices, *voices), "priority": first.priority, "reason": first.reason}
    )


def sure(who: str, verdict: str, confidence: float) -> Voice:
    """A moderator's verdict as reviewers see it."""
    return Voice(who=who, says=f"{verdict}, {confidence:.2f} sure")


def urgency(kind: Kind, confidence: float) -> float:
    """The priority of a moderator's verdict, and the confidence for a priority."""
    return confidence if kind == "safety" else 1 - confidence
