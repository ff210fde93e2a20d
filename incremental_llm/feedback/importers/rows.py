"""Flat rows with a column for each thing: OpenAI-style chat logs with a feedback column, CSV and Parquet tables.

A row holds a question and a reply (or `messages` that end with it), and may hold a verdict, the right reply and a
comment; or a question with `chosen` and `rejected`. Which column is which, `Columns` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.feedback.events import Event, EventError
from incremental_llm.feedback.importers.shapes import Verdicts, event, messages_of, name_of, text_of, time_of


class Columns(BaseModel):
    """The column of each thing; those that are named by default are read where they are there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: str = Field("messages", description="turns as a list of {role, content}, or as JSON of one")
    prompt: str = Field("prompt", description="the question, where there are no messages")
    system: str = Field("system", description="the system prompt before the question")
    reply: str = Field("reply", description="the reply; by default the last turn of messages, if the assistant's")
    chosen: str = Field("chosen", description="the better of two replies")
    rejected: str = Field("rejected", description="the other one")
    feedback: str = Field("feedback", description="the verdict on the reply")
    correction: str = Field("correction", description="what the reply should have been")
    comment: str = Field("comment", description="what the user wrote to the verdict")
    user: str = Field("user", description="who asked, and gave the verdict")
    reviewer: str = Field("reviewer", description="who corrected; by default the user")
    conversation: str = Field("conversation", description="the conversation; by default each row is one")
    time: str = Field("time", description="ISO 8601, or seconds or milliseconds since 1970")
    id: str = Field("id", description="the row's name; by default made of its content")
    model: str = Field("model", description="what answered, such as production@7")

    @property
    def named(self) -> frozenset[str]:
        """The columns that a mapping names."""
        return frozenset(getattr(self, name) for name in self.model_fields_set)


class Fallbacks(BaseModel):
    """What holds for a row that does not say it; nothing is made up where these are not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str | None = Field(None, description="all rows without a user count as this one user")
    time: str | None = Field(None, description="the time of all rows without one")


_ELSEWHERE = {"time": ("created", "created_at", "timestamp"), "user": ("user_id",), "conversation": ("session_id",)}
"""Names that a column has in many logs, looked for where the usual one is not there."""


def looks_like_chat(record: Mapping[str, Any]) -> bool:
    """Whether a record is a row of an OpenAI-style log."""
    return record.get("type") != "interaction" and bool({"messages", "request"} & record.keys())


def events_of(
    record: Mapping[str, Any], source: str, columns: Columns, fallbacks: Fallbacks, verdicts: Verdicts
) -> Iterator[Event]:
    """The events of one row, interactions first.

    Raises:
        EventError: no question or reply, no user or time, or a verdict that is unclear.
    """
    row = _Row(flattened(record), columns)
    user = row.text("user") or fallbacks.user
    told = row.value("time") if row.has("time") else fallbacks.time
    if user is None:
        raise EventError(_missing("user", columns, "--map default_user=NAME to count all such rows as one user"))
    if told is None:
        raise EventError(_missing("time", columns, "--map default_time=2026-11-01T00:00:00Z"))
    prompt, reply = _conversation(row)
    key = row.text("id") or "row"
    asked = {
        "time": time_of(told),
        "conversation": row.text("conversation"),
        "user": user,
        "messages": prompt,
        "model": row.text("model") or "unknown",
    }
    if row.has("chosen") or row.has("rejected"):
        yield from _pair(row, source, key, asked)
        return
    if reply is None:
        raise EventError(_missing("reply", columns, "a table of pairs has chosen and rejected instead"))
    yield from _single(row, source, key, asked | {"reply": reply}, verdicts)


def _single(row: _Row, source: str, key: str, asked: dict[str, Any], verdicts: Verdicts) -> Iterator[Event]:
    verdict = verdicts.of(row.value("feedback")) if row.has("feedback") else None
    right = row.text("correction")
    served = _served(source, key, asked)
    said = {"time": asked["time"], "interaction": served.id}
    yield served
    if verdict is not None:
        comment = row.text("comment")
        yield event(source, "thumb", key, user=asked["user"], value=verdict, comment=comment, **said)
    if right:
        reviewer = row.text("reviewer") or asked["user"]
        yield event(source, "correction", key, reviewer=reviewer, content=right, **said)


def _pair(row: _Row, source: str, key: str, asked: dict[str, Any]) -> Iterator[Event]:
    replies = {name: _reply(row, name) for name in ("chosen", "rejected")}
    if replies["chosen"] == replies["rejected"]:
        raise EventError("chosen and rejected: expected two replies, found the same one twice")
    served = {name: _served(source, f"{key}:{name}", asked | {"reply": reply}) for name, reply in replies.items()}
    yield from served.values()
    names = {name: interaction.id for name, interaction in served.items()}
    yield event(source, "preference", key, time=asked["time"], user=asked["user"], **names)


def _served(source: str, key: str, fields: dict[str, Any]) -> Event:
    return event(source, "interaction", key, **fields | {"conversation": fields["conversation"] or f"{source}:{key}"})


def _conversation(row: _Row) -> tuple[list[dict[str, str]], str | None]:
    """The turns before the reply, and the reply; None where the row has none."""
    if row.has("messages"):
        turns = messages_of(_json(row.value("messages")))
        if row.has("reply"):
            return turns, _reply(row, "reply")
        if turns[-1]["role"] == "assistant" and len(turns) > 1:
            return turns[:-1], turns[-1]["content"]
        return turns, None
    question = row.text("prompt")
    if not question:
        raise EventError(_missing("prompt", row.columns, "or messages"))
    system = [{"role": "system", "content": said}] if (said := row.text("system")) else []
    return [*system, {"role": "user", "content": question}], _reply(row, "reply") if row.has("reply") else None


def _reply(row: _Row, name: str) -> str:
    """A reply as text, as a message, or as messages that end with it."""
    value = _json(row.value(name))
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = value.get("content")
    return text_of(value, name)


def _json(value: Any) -> Any:
    if isinstance(value, str) and value[:2] in ("[{", "[ ", '{"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def flattened(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A logged call of the API as one row: what was asked, and the first choice of the response."""
    request, response = record.get("request"), record.get("response")
    if not isinstance(response, Mapping):
        response = record if isinstance(record.get("choices"), Sequence) else {}
    choices = response.get("choices")
    found: dict[str, Any] = dict(request) if isinstance(request, Mapping) else {}
    found |= {name: response[name] for name in ("id", "created", "model") if response.get(name) is not None}
    if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
        found["reply"] = choices[0].get("message")
    logged = {name for name in ("request", "response", "choices") if not isinstance(record.get(name), str)}
    return found | {name: value for name, value in record.items() if name not in logged}


class _Row:
    """A row by the names of `Columns`."""

    def __init__(self, record: Mapping[str, Any], columns: Columns) -> None:
        self.record, self.columns = record, columns

    def value(self, name: str) -> Any:
        """What the row says; None where it does not."""
        names = (getattr(self.columns, name), *(_ELSEWHERE.get(name, ()) if self._by_default(name) else ()))
        return next((self.record[column] for column in names if self.record.get(column) is not None), None)

    def has(self, name: str) -> bool:
        return self.value(name) not in (None, "")

    def text(self, name: str) -> str | None:
        """Text, or a number as one; None where the row does not say it."""
        value = self.value(name)
        if value is None or value == "":
            return None
        return value if isinstance(value, str) else name_of(value, name)

    def _by_default(self, name: str) -> bool:
        return name not in self.columns.model_fields_set


def _missing(name: str, columns: Columns, otherwise: str) -> str:
    return f"{name}: expected it in the column {getattr(columns, name)!r}, found none. --map {name}=COLUMN, {otherwise}"
