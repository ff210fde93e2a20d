"""What the queue holds: items to decide, and what reviewers decided of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from incremental_llm.chat import Message, json_digest
from incremental_llm.errors import InputError
from incremental_llm.feedback.events import Id

Kind = Literal["conflict", "low_margin", "safety", "moderation"]
"""conflict: people disagree; low_margin: the model hardly prefers one reply of a pair; safety: a reply was flagged;
moderation: a moderator was not sure of its verdict."""

Verdict = Literal["accept", "reject", "correct", "skip"]
VERDICTS: tuple[Verdict, ...] = ("accept", "reject", "correct", "skip")

State = Literal["open", "claimed", "waiting", "done"]
"""waiting: one reviewer has decided and another has to, by the two-person rule or since the first two disagree."""


HINTS: Mapping[str, str] = {
    "conflict": "As many people are for it as against it. Your decision is one more voice.",
    "outvoted": "A narrow majority has decided. Your decision is one more voice.",
    "no_quorum": "Reviewers disagree, and none has more than half of them.",
    "contradicts_accepted": "It says something else than an accepted correction. Only a policy change ends that one: a "
    "correction here that says something else is left out too.",
    "low_margin": "The model hardly prefers either of the two replies.",
}
"""What a reason of the compiler's means for whoever decides."""


class ReviewError(InputError):
    """A claim or decision that the queue refuses; nothing was changed."""

    def __init__(self, expected: str, found: str, do: str) -> None:
        super().__init__(f"review: expected {expected}, found {found}. {do}")
        self.expected, self.found, self.do = expected, found, do


class UnknownItemError(ReviewError):
    """There is no such item."""


class NotYoursError(ReviewError):
    """The item is somebody else's to decide, was decided already, or the claim on it has run out."""


class Voice(BaseModel):
    """What somebody said of the reply: a word such as `up`, or where `text` is true a reply of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    who: str
    says: str
    text: bool = False


class Proposal(BaseModel):
    """Something to be decided. With `other` the question is whether `reply` is better than it, else if it is right.

    `interaction` and `other_interaction` are where the replies were served, None where a text was written by a person.
    `authors` are all who spoke in `sources`, the events that it comes from: none of them decides it. `priority` is 0 to
    1, largest first; of what people or a model are unsure about it is how unsure. `about` replaces the texts in the id
    where different texts are the same question. A seeded item has `expected`, stands on no event and teaches nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind
    reason: str
    prompt: tuple[Message, ...]
    reply: str
    other: str | None = None
    interaction: Id | None = None
    other_interaction: Id | None = None
    voices: tuple[Voice, ...] = ()
    sources: tuple[Id, ...] = ()
    authors: tuple[str, ...] = ()
    priority: float = Field(ge=0, le=1)
    about: str | None = None
    expected: Verdict | None = None

    @property
    def id(self) -> str:
        """32 hex digits, equal for the same question."""
        texts = [[message.model_dump() for message in self.prompt], self.reply, self.other]
        return json_digest([self.kind, self.expected is not None, self.about or texts])[:32]

    @model_validator(mode="after")
    def _teaches_somewhere(self) -> Proposal:
        if self.expected == "skip":
            raise ValueError("expected: one of accept, reject, correct; skip says nothing of a reply")
        if self.expected is None and self.interaction is None and self.other_interaction is None:
            raise ValueError("expected an interaction that a decision is feedback on, found none")
        return self


@dataclass(frozen=True)
class Item:
    """A proposal in the queue. `claimed_by` is who holds it now, `decided` how many have decided, skips left out."""

    id: str
    proposal: Proposal
    state: State
    created: datetime
    claimed_by: str | None
    decided: int


@dataclass(frozen=True)
class Claim:
    """An item that one reviewer holds until `expires`."""

    item: Item
    reviewer: str
    expires: datetime


@dataclass(frozen=True)
class Decision:
    """What a reviewer decided; `content` is the correction's text, `seconds` passed since the item was claimed."""

    item: str
    reviewer: str
    verdict: Verdict
    content: str | None
    time: datetime
    seconds: float


@dataclass(frozen=True)
class Decided:
    """What became of the item, and the events of the log that the decision completed."""

    item: str
    state: State
    events: tuple[str, ...]
