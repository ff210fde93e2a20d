"""The events of a feedback log: what each holds, and the one place where JSON becomes an event.

Unknown types are kept whole as `UnknownEvent`; anything else that does not fit is refused with a one-line reason.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)

from incremental_llm.chat import Message, canonical_json, json_digest
from incremental_llm.errors import InputError
from incremental_llm.feedback.serving import check_serving
from incremental_llm.strict_json import deeper, read_json

MAX_ID = 200
"""Longest id, in characters."""
MAX_RANKED = 10
"""Most replies in one ranking."""
_PROBLEMS_SHOWN = 10

MAX_DEPTH = 500
"""Deepest nesting of an event: what is deeper may be read on an empty stack, and then not be written on a full one."""


class EventError(InputError):
    """An object that is no event; the message is one line and says which field is wrong and how."""


def _plain_id(value: str) -> str:
    control = not value.isprintable() and any(ord(c) < 32 for c in value)
    if control or not value.strip() or len(value) > MAX_ID:
        raise ValueError(f"expected 1 to {MAX_ID} characters without control characters")
    return value


_NUMBER = re.compile(r"[\d.\s+-]+")


def _text_time(value: Any) -> Any:
    if not isinstance(value, str | datetime) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("expected an ISO 8601 time with its zone, such as 2026-11-01T12:00:00Z")
    return value


def _not_empty(value: tuple[Message, ...]) -> tuple[Message, ...]:
    if not value:
        raise ValueError("expected at least one message")
    return value


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("expected different interactions, found one twice")
    return value


def _real_int(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError("expected 1 or -1")
    return value


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time between the years 1 and 9999 in UTC") from None


Id = Annotated[str, AfterValidator(_plain_id)]
Time = Annotated[AwareDatetime, BeforeValidator(_text_time), AfterValidator(_in_utc)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    time: Time


class Interaction(_Event):
    """One reply as it was served: `messages` is the whole context that `reply` answered, `model` what answered."""

    type: Literal["interaction"] = "interaction"
    conversation: Id
    user: Id
    messages: Annotated[tuple[Message, ...], FailFast(), AfterValidator(_not_empty)]
    reply: str
    model: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class Thumb(_Event):
    """A user's verdict on a reply: 1 is up, -1 is down."""

    type: Literal["thumb"] = "thumb"
    interaction: Id
    user: Id
    value: Annotated[Literal[1, -1], BeforeValidator(_real_int)]
    comment: str | None = None


class Correction(_Event):
    """What a reviewer says the reply should have been."""

    type: Literal["correction"] = "correction"
    interaction: Id
    reviewer: Id
    content: str


class Preference(_Event):
    """A user's choice between the replies of two interactions."""

    type: Literal["preference"] = "preference"
    chosen: Id
    rejected: Id
    user: Id

    @model_validator(mode="after")
    def _two_replies(self) -> Preference:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same interaction")
        return self


class Rephrase(_Event):
    """The user asked `interaction` again in other words as `followup`."""

    type: Literal["rephrase"] = "rephrase"
    interaction: Id
    followup: Id

    @model_validator(mode="after")
    def _two_questions(self) -> Rephrase:
        if self.interaction == self.followup:
            raise ValueError("interaction and followup are the same interaction")
        return self


class Ranking(_Event):
    """A user's order of the replies of several interactions, best first; replies that are as good are left out."""

    type: Literal["ranking"] = "ranking"
    replies: Annotated[tuple[Id, ...], Field(min_length=2, max_length=MAX_RANKED), FailFast(), AfterValidator(_once)]
    user: Id


class Copy(_Event):
    """The user copied the reply, as the client saw it."""

    type: Literal["copy"] = "copy"
    interaction: Id
    user: Id


class Abandon(_Event):
    """The user left at this reply, as the client saw it: before it had ended, or without reading on."""

    type: Literal["abandon"] = "abandon"
    interaction: Id
    user: Id


class PolicyChange(_Event):
    """The truth changed: what the named events taught is no longer so. The only way in which truth changes."""

    type: Literal["policy_change"] = "policy_change"
    reviewer: Id
    supersedes: Annotated[tuple[Id, ...], FailFast()]
    note: str = ""


class UnknownEvent(BaseModel):
    """An event of a type that this version does not know; `body` is the whole object as it came.

    `id` is derived from the content where the object has none, `time` is None where it has none that can be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    time: Time | None
    type: str
    body: dict[str, Any]


Event = (
    Interaction | Thumb | Correction | Preference | Rephrase | PolicyChange | Ranking | Copy | Abandon | UnknownEvent
)

EVENT_MODELS: dict[str, type[_Event]] = {
    "interaction": Interaction,
    "thumb": Thumb,
    "correction": Correction,
    "preference": Preference,
    "rephrase": Rephrase,
    "policy_change": PolicyChange,
    "ranking": Ranking,
    "copy": Copy,
    "abandon": Abandon,
}
EVENT_TYPES = tuple(EVENT_MODELS)
"""The known types, as they stand in `type`."""
_ONCE_UNKNOWN = frozenset({"ranking", "copy", "abandon"})


def read_event(raw: bytes) -> Event:
    """The event in the bytes of one JSON object.

    Raises:
        EventError: not UTF-8, not strict JSON, or as for `parse_event`.
    """
    try:
        obj = read_json(raw)
    except ValueError as error:
        raise EventError(_line(error, 200)) from None
    return parse_event(obj)


def parse_event(obj: Any) -> Event:
    """The event that a JSON object describes.

    >>> parse_event({"type": "thumb", "id": "t1", "time": "2026-11-01T12:00:00Z", "interaction": "i1", "user": "u1",
    ...              "value": 1}).value
    1

    Raises:
        EventError: not an object, a missing, unknown or wrong field, NaN, text that is not Unicode, or more than
            MAX_DEPTH levels of nesting.
    """
    if not isinstance(obj, dict):
        raise EventError(f"expected an object, found {type(obj).__name__}")
    try:
        text = canonical_json(obj)
        text.encode()
    except (ValueError, RecursionError, TypeError) as error:
        raise EventError(f"expected plain JSON in valid Unicode, found otherwise ({_line(error)})") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and deeper(obj, MAX_DEPTH):
        raise EventError(f"expected at most {MAX_DEPTH} levels of nesting, found more")
    kind = obj.get("type")
    if not isinstance(kind, str) or not kind:
        raise EventError(f"type: expected one of {', '.join(EVENT_TYPES)} or a type of your own, found {kind!r}")
    try:
        model = EVENT_MODELS.get(kind)
        if kind == "interaction" and isinstance(metadata := obj.get("metadata"), dict):
            check_serving(metadata)
        return _unknown(kind, obj) if model is None else model.model_validate(obj)  # type: ignore[return-value]
    except ValidationError as error:
        details = error.errors(include_url=False)
        shown = [_problem(detail, kind) for detail in details[:_PROBLEMS_SHOWN]]
        more = len(details) - len(shown)
        raise EventError("; ".join([*shown, *([f"and {more} more"] if more else [])])) from None


_GIVEN: dict[frozenset[str], set[str]] = {}


def load_event(kind: str, body: str) -> Event:
    """The event in what a store holds, which may be older than what this version asks of events.

    A ranking, copy or abandon of another shape is an unknown event, as it was when it came in; a serving block of
    another shape stays in the metadata.

    Raises:
        ValueError, EventError: it is none of this type.
    """
    model = EVENT_MODELS.get(kind)
    if model is None:
        return parse_event(json.loads(body))
    try:
        return _lean(model.model_validate_json(body))  # type: ignore[arg-type]
    except ValidationError:
        if kind in _ONCE_UNKNOWN:
            return _unknown(kind, json.loads(body))
        raise


def _lean(event: Event) -> Event:
    """The event at two thirds of its memory: which fields were given is one set for all events that have the same."""
    for model in (event, *(event.messages if isinstance(event, Interaction) else ())):
        given = model.__pydantic_fields_set__
        object.__setattr__(model, "__pydantic_fields_set__", _GIVEN.setdefault(frozenset(given), given))
    return event


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON data; `parse_event(event_to_dict(e)) == e`."""
    if isinstance(event, UnknownEvent):
        return dict(event.body)
    data = event.model_dump(mode="python")
    data["time"] = event.time.isoformat().replace("+00:00", "Z")
    if isinstance(event, Interaction):
        data["messages"] = [message.model_dump() for message in event.messages]
    if isinstance(event, PolicyChange):
        data["supersedes"] = list(event.supersedes)
    if isinstance(event, Ranking):
        data["replies"] = list(event.replies)
    if isinstance(event, Thumb) and event.comment is None:
        del data["comment"]
    return data


def event_digest(event: Event) -> str:
    """Digest of an event's content, 64 hex digits."""
    return json_digest(event_to_dict(event))


def references(event: Event) -> tuple[str, ...]:
    """Ids of the interactions that an event is about and has to wait for; a policy change waits for nothing."""
    match event:
        case Thumb() | Correction() | Copy() | Abandon():
            return (event.interaction,)
        case Preference():
            return (event.chosen, event.rejected)
        case Rephrase():
            return (event.interaction, event.followup)
        case Ranking():
            return event.replies
        case _:
            return ()


def _unknown(kind: str, obj: Mapping[str, Any]) -> UnknownEvent:
    name = obj.get("id")
    try:
        return UnknownEvent(
            id=name or f"{kind[:100]}-{json_digest(obj)[:16]}", time=obj.get("time"), type=kind, body=dict(obj)
        )
    except ValidationError as error:
        if any(detail["loc"][:1] != ("time",) for detail in error.errors()):
            raise
        return _unknown_without_time(kind, obj)


def _unknown_without_time(kind: str, obj: Mapping[str, Any]) -> UnknownEvent:
    name = obj.get("id")
    return UnknownEvent(id=name or f"{kind[:100]}-{json_digest(obj)[:16]}", time=None, type=kind, body=dict(obj))


def _problem(detail: Any, kind: str) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or kind
    if detail["type"] == "missing":
        return f"{where}: missing"
    if detail["type"] == "extra_forbidden":
        known = list(EVENT_MODELS[kind].model_fields) if kind in EVENT_MODELS else []
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5)
        return f"unknown field {where!r} of {kind}" + (f", did you mean {near[0]!r}?" if near else "")
    found = detail["input"]
    shown = "" if isinstance(found, dict | list) else f", found {_line(repr(found))}"
    return f"{where}: {detail['msg'].removeprefix('Value error, ')}{shown}"


def _line(value: object, longest: int = 120) -> str:
    text = " ".join(str(value).encode("ascii", "backslashreplace").decode().split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
