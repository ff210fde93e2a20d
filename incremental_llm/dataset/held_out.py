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
from incremental_llm.dataset.batch import time_and_id
from incremental_llm.dataset.privacy import Redaction
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.feedback.events import Correction, Interaction, PolicyChange, Thumb
from incremental_llm.feedback.exploration import is_held_out
from incremental_llm.feedback.serving import Serving, absent, serving_of
from incremental_llm.feedback.store import StoredEvent


class HeldOutReply(BaseModel):
    """One reply of the sample: `up` and `down` count distinct users by their last word, `corrections` are reviewers'.

    Personal data and secrets are replaced in every text, but for prompts or replies whose setting is `keep`.
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
    said: list[StoredEvent] = field(default_factory=list)


def held_out_replies(events: Iterable[StoredEvent], settings: CompileSettings) -> tuple[HeldOutReply, ...]:
    """Every reply of the sample in the order of the log, judged or not, without what policy changes have ended.

    `events` come in the order of the log, in which feedback stands behind its interaction, whenever it was given.
    """
    found: dict[str, _Open] = {}
    ended: set[str] = set()
    share, salt = settings.held_out_share, settings.held_out_salt
    for stored in events:
        event = stored.event
        if isinstance(event, Interaction) and is_held_out(event.conversation, share, salt):
            found[event.id] = _Open(event)
        elif isinstance(event, Thumb | Correction) and event.interaction in found:
            found[event.interaction].said.append(stored)
        elif isinstance(event, PolicyChange) and settings.may_change_policy(event.reviewer):
            ended.update(event.supersedes)
    return tuple(_reply(one, ended, settings) for name, one in found.items() if name not in ended)


def _reply(one: _Open, ended: set[str], settings: CompileSettings) -> HeldOutReply:
    redaction = Redaction(settings)
    prompts, replies = settings.personal_data_in_prompts != "keep", settings.personal_data_in_replies != "keep"

    def clean(text: str, replaced: bool) -> str:
        return redaction.text(text) if replaced else text

    served, said = one.served, [stored.event for stored in sorted(one.said, key=time_and_id)]
    values = list({event.user: event.value for event in said if isinstance(event, Thumb)}.values())
    corrections = [event.content for event in said if isinstance(event, Correction) and event.id not in ended]
    return HeldOutReply(
        id=served.id,
        conversation=served.conversation,
        user=served.user,
        messages=tuple(Message(role=m.role, content=clean(m.content, prompts)) for m in served.messages),
        reply=clean(served.reply, replies),
        model=served.model,
        serving=serving_of(served.metadata),
        up=values.count(1),
        down=values.count(-1),
        corrections=tuple(clean(content, replies) for content in corrections),
    )
