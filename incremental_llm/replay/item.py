"""What the buffer holds: an example, where it came from, and what a policy has noted about it; and what is known of it.

The one design fact: a note that was never made is absent from the JSON, so a buffer under a policy that makes none is
the same bytes as before there were any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.dataset.examples import Example
from incremental_llm.feedback import Interaction, StoredEvent


def absent(value: object) -> bool:
    """Whether a note was never made; such a one is left out of the JSON."""
    return value is None


class ReplayItem(BaseModel):
    """One kept example and the increment it came from.

    `ticket` is the uniform random number in (0, 1) that it drew when a policy first saw it; it is kept, so that one
    order holds from night to night. `loss` (nats, at least 0) and `right` are what production was last measured at on
    it, `learned` says whether any production was ever right; None until then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: Annotated[Example, Field(discriminator="kind")]
    increment: int
    ticket: float | None = Field(None, gt=0, lt=1, exclude_if=absent)
    loss: float | None = Field(None, ge=0, allow_inf_nan=False, exclude_if=absent)
    right: bool | None = Field(None, exclude_if=absent)
    learned: bool | None = Field(None, exclude_if=absent)

    @property
    def flipped(self) -> bool:
        """A negative flip: right once, and wrong when it was last measured."""
        return self.learned is True and self.right is False

    def with_loss(self, loss: float) -> ReplayItem:
        """This item after production had `loss` on it."""
        return self.model_copy(update={"loss": loss})

    def with_verdict(self, right: bool) -> ReplayItem:
        """This item after production was right or wrong on it."""
        return self.model_copy(update={"right": right, "learned": right or self.learned is True})


@dataclass(frozen=True)
class Facts:
    """What is known of examples beyond their texts: the events that they stand on, by id, and how long they are.

    `tokens` gives an example's tokens, prompt and replies together; None where no tokenizer is at hand.
    """

    events: Mapping[str, StoredEvent] = field(default_factory=dict)
    tokens: Callable[[Example], int] | None = None

    def topic(self, example: Example) -> str:
        """`metadata["topic"]` of the first interaction it stands on that names one; "" where none does."""
        stored = (self.events[name].event for name in example.sources if name in self.events)
        named = (event.metadata.get("topic") for event in stored if isinstance(event, Interaction))
        return next((topic for topic in named if isinstance(topic, str) and topic), "")

    def time(self, example: Example) -> datetime | None:
        """When the newest event that it stands on happened (UTC); None where the log holds none of them."""
        times = (self.events[name].event.time for name in example.sources if name in self.events)
        return max((time for time in times if time is not None), default=None)
