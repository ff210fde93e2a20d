"""What a moderator outside says of a reply, as an item of the queue."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.feedback.events import Id, Interaction
from incremental_llm.feedback.review.items import Proposal, Voice


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
        voices=(Voice(who=by, says=f"{flag.verdict}, {flag.confidence:.2f} sure"),),
        sources=(served.id,),
        authors=(served.user,),
        priority=flag.confidence if flag.kind == "safety" else 1 - flag.confidence,
        about=served.id,
    )
