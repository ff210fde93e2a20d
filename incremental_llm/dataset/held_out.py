"""The random sample of conversations that is never trained on, with what people said of its replies.

Feedback comes from those whom a reply moved, so a score on judged replies alone is one of the moved. The sample is
drawn by the name of the conversation, before anybody has judged anything: asked for a verdict, its users are a fair
picture of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.chat import Message
from incremental_llm.dataset.privacy import Redaction
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.feedback.events import Correction, Interaction, PolicyChange, Thumb
from incremental_llm.feedback.exploration import is_held_out
from incremental_llm.feedback.serving import Serving, absent, serving_of
from incremental_llm.feedback.store import StoredEvent


class HeldOutReply(BaseModel):
    """One reply of the sample: `up` and `down` count distinct users by their last word, `corrections` are reviewers'.

    Personal data in `messages` is replaced as for training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    conversation: str
    user: str
    messages: tuple[Message, ...]
    reply: str
    model: str
    serving: Serving | None = Field(None, exclude_if=absent)
    up: int
    down: int
    corrections: tuple[str, ...]


@dataclass
class _Open:
    served: Interaction
    thumbs: dict[str, int] = field(default_factory=dict)
    corrections: dict[str, str] = field(default_factory=dict)


def held_out_replies(events: Iterable[StoredEvent], settings: CompileSettings) -> tuple[HeldOutReply, ...]:
    """Every reply of the sample in the order of the log, judged or not, without what policy changes have ended.

    `events` come in the order of the log, in which feedback stands behind its interaction.
    """
    found: dict[str, _Open] = {}
    ended: set[str] = set()
    redaction = Redaction(settings)
    for stored in events:
        event = stored.event
        if isinstance(event, Interaction) and is_held_out(event.conversation, settings.held_out_share):
            clean = redaction.of(stored).event
            assert isinstance(clean, Interaction)
            found[event.id] = _Open(clean)
        elif isinstance(event, Thumb) and event.interaction in found:
            found[event.interaction].thumbs[event.user] = event.value
        elif isinstance(event, Correction) and event.interaction in found:
            found[event.interaction].corrections[event.id] = event.content
        elif isinstance(event, PolicyChange) and settings.may_change_policy(event.reviewer):
            ended.update(event.supersedes)
    return tuple(_reply(one, ended) for name, one in found.items() if name not in ended)


def _reply(one: _Open, ended: set[str]) -> HeldOutReply:
    served, values = one.served, list(one.thumbs.values())
    return HeldOutReply(
        id=served.id,
        conversation=served.conversation,
        user=served.user,
        messages=served.messages,
        reply=served.reply,
        model=served.model,
        serving=serving_of(served.metadata),
        up=values.count(1),
        down=values.count(-1),
        corrections=tuple(content for name, content in one.corrections.items() if name not in ended),
    )
