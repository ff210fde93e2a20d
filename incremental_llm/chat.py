"""Chat messages and their canonical form.

    >>> from incremental_llm.chat import Message, conversation_text
    >>> conversation_text((Message(role="user", content="Hi"),))
    'user: Hi'

The one design fact: everything that is hashed goes through `canonical_json`, so equal content has equal digests on
every machine.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = tuple[Message, ...]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, UTF-8 as it is, and no NaN (raises ValueError for one)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    """The conversation as chat templates and TRL take it."""
    return [message.model_dump() for message in conversation]


def conversation_text(conversation: Conversation) -> str:
    """The conversation as plain text, a line a turn: for comparing, searching and showing, never for training."""
    return "\n".join(f"{message.role}: {message.content}" for message in conversation)


def last_user_text(conversation: Conversation) -> str:
    """The content of the last user turn; empty when there is none."""
    return next((m.content for m in reversed(conversation) if m.role == "user"), "")
