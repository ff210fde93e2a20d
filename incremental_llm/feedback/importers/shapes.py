"""What all shapes of records have in common: times, verdicts, texts and ids of other tools, as events have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.chat import json_digest
from incremental_llm.feedback.events import MAX_ID, Event, EventError, parse_event

_MILLISECONDS = 1e11
"""From here on a number of seconds would be in the year 5138: it is one of milliseconds."""


class Verdicts(BaseModel):
    """Which values of a feedback column are up, down and none; letters' case and spaces around do not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: tuple[str, ...] = Field(
        ("1", "true", "up", "thumbs_up", "thumbsup", "thumb_up", "positive", "good", "like", "liked", "yes", "👍")
    )
    down: tuple[str, ...] = Field(
        ("-1", "false", "down", "thumbs_down", "thumbsdown", "thumb_down", "negative", "bad", "dislike", "no", "👎")
    )
    none: tuple[str, ...] = Field(("", "none", "null", "nan", "neutral"))

    def of(self, value: Any) -> int | None:
        """1, -1, or None where nothing was said.

        Raises:
            EventError: a value that is none of them.
        """
        plain = _plain(value)
        for verdict, names in ((1, self.up), (-1, self.down), (None, self.none)):
            if plain in {name.strip().casefold() for name in names}:
                return verdict
        raise EventError(
            f"feedback: expected one of {', '.join(map(repr, (*self.up[:3], *self.down[:3])))} and the like, found "
            f"{value!r}. Say what it means, such as --map up={plain or '5'}, --map down=0 or --map none=3"
        )


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def time_of(value: Any) -> str:
    """ISO 8601 with a zone, from that, from seconds or milliseconds since 1970, or from a time without zone (UTC).

    Raises:
        EventError: none of these.
    """
    if isinstance(value, datetime):
        value = value.isoformat()
    if isinstance(value, str) and re.fullmatch(r"\d{9,17}(\.\d+)?", value.strip()):
        value = float(value)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if value >= _MILLISECONDS else value
            return datetime.fromtimestamp(seconds, UTC).isoformat()
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat()
    except (ValueError, OverflowError, OSError):
        pass
    raise EventError(f"time: expected ISO 8601 or seconds since 1970, found {value!r}")


def messages_of(value: Any) -> list[dict[str, str]]:
    """The turns of an OpenAI-style list of messages; parts of text are put together.

    Raises:
        EventError: no such list, or a turn that holds something else than text, such as an image or a call of a tool.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise EventError(f"messages: expected a list of turns, found {type(value).__name__}")
    return [_message(turn, place) for place, turn in enumerate(value)]


_ROLES = {"human": "user", "ai": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}


def _message(turn: Any, place: int) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise EventError(f"messages.{place}: expected an object with role and content, found {type(turn).__name__}")
    role = str(turn.get("role", ""))
    role = _ROLES.get(role, role)
    if role not in ("system", "user", "assistant"):
        raise EventError(f"messages.{place}.role: expected system, user or assistant, found {role!r}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise EventError(f"messages.{place}: expected text, found a call of a tool")
    return {"role": role, "content": text_of(turn.get("content"), f"messages.{place}.content")}


def text_of(value: Any, where: str) -> str:
    """A text, or the texts of OpenAI's content parts together.

    Raises:
        EventError: anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value:
        parts = [part for part in value if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(parts) == len(value):
            return "".join(part["text"] for part in parts)
        other = next(part for part in value if part not in parts)
        kind = other.get("type") if isinstance(other, Mapping) else type(other).__name__
        raise EventError(f"{where}: expected text, found a part of type {kind!r}")
    raise EventError(f"{where}: expected text, found {value!r}")


def event(source: str, kind: str, key: str, **fields: Any) -> Event:
    """The event of these fields, None left out; its id is made of the source's `key` and of what it says.

    So an import can be repeated, and what was changed at its source since then is an event of its own.

    Raises:
        EventError: the fields make no such event.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    ending = f":{json_digest([kind, key, body])[:12]}"
    name = f"{source}:{key}"
    return parse_event({"type": kind, "id": name[: MAX_ID - len(ending)] + ending} | body)


def name_of(value: Any, where: str) -> str:
    """An id of another tool: text or a whole number.

    Raises:
        EventError: anything else.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise EventError(f"{where}: expected an id, found {value!r}")
