"""An event as the store writes it: its canonical JSON, the digest of that, and what it refers to.

    encode(event)         from an event
    encode_line(raw)      from a line of a log, several times faster: a plain one is checked as it is, without a model

Both give the same for the same line; whatever is not plain (another spelling of a time, an id with odd characters, a
float at the ends of its range, any mistake) goes through `read_event`, which alone refuses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeGuard

import orjson

from incremental_llm.chat import canonical_json
from incremental_llm.feedback.events import MAX_ID, Event, event_to_dict, read_event, references
from incremental_llm.feedback.serving import serving_fits
from incremental_llm.feedback.tables import Link, links_of

_PLAIN_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-5][0-9])"
)
_SPACE_BEFORE_COLON = re.compile(rb'"[ \t\r\n]+:')
_ROLES = frozenset(("system", "user", "assistant"))
_LEAST_FLOAT, _MOST_FLOAT = 1e-4, 1e15
"""Between these `json` and `orjson` write floats alike; beyond, one writes 1e-05 and the other 1e-5."""
_NESTED = 20
"""Levels of metadata that are looked through."""


class Encoded(NamedTuple):
    """`body` is canonical JSON and `digest` its sha256; the event waits for `needs`, ids of interactions."""

    id: str
    type: str
    digest: str
    body: str
    needs: tuple[str, ...]
    links: tuple[Link, ...]


def encode(event: Event) -> Encoded:
    """An event as it is stored."""
    data = event_to_dict(event)
    body = canonical_json(data)
    return Encoded(event.id, event.type, _digest(body.encode()), body, references(event), links_of(data))


def encode_line(raw: bytes) -> Encoded:
    """The event in the bytes of one JSON object, as it is stored.

    Raises:
        EventError: as for `read_event`.
    """
    plain = _plain(raw)
    return encode(read_event(raw)) if plain is None else plain


def _plain(raw: bytes) -> Encoded | None:
    """`encode(read_event(raw))` where nothing has to be converted but the time, else None."""
    try:
        obj = orjson.loads(raw)
        shape = _SHAPES[obj["type"]]
        names = obj.keys()
        if names != shape.least and names != shape.most:
            return None
        found = shape.check(obj)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if found is None or not _is_id(obj["id"]) or (time := _utc(obj["time"])) is None:
        return None
    # Every key ends in `":`. Where there are as many of these as keys were read, no key stands twice.
    if raw.count(b'":') != len(names) + found.keys or _SPACE_BEFORE_COLON.search(raw):
        return None
    obj["time"] = time
    if shape is _INTERACTION:
        obj.setdefault("metadata", {})
    body = orjson.dumps(obj, option=orjson.OPT_SORT_KEYS)
    return Encoded(obj["id"], obj["type"], _digest(body), body.decode(), found.needs, found.links)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class _Found(NamedTuple):
    """What an event refers to, and how many keys are in its values, at all depths."""

    needs: tuple[str, ...]
    links: tuple[Link, ...]
    keys: int = 0


class _Shape(NamedTuple):
    """The fields that a plain event has at least and at most, and what else has to be so."""

    least: frozenset[str]
    most: frozenset[str]
    check: Callable[[dict[str, Any]], _Found | None]


def _shape(check: Callable[[dict[str, Any]], _Found | None], least: str, optional: str = "") -> _Shape:
    names = frozenset(("type", "id", "time", *least.split()))
    return _Shape(names, names | frozenset(optional.split()), check)


def _interaction(obj: dict[str, Any]) -> _Found | None:
    messages = obj["messages"]
    if type(messages) is not list or not messages or not (_is_id(obj["user"]) and _is_id(obj["conversation"])):
        return None
    if type(obj["reply"]) is not str or type(obj["model"]) is not str:
        return None
    for message in messages:
        if len(message) != 2 or message["role"] not in _ROLES or type(message["content"]) is not str:
            return None
    metadata = obj.get("metadata", {})
    if type(metadata) is dict and not serving_fits(metadata):
        return None
    inside = _keys(metadata, _NESTED) if type(metadata) is dict else None
    return None if inside is None else _Found((), (("person", obj["user"]),), 2 * len(messages) + inside)


def _thumb(obj: dict[str, Any]) -> _Found | None:
    if type(obj["value"]) is not int or obj["value"] not in (1, -1) or type(obj.get("comment", "")) is not str:
        return None
    return _about(obj["user"], obj["interaction"])


def _correction(obj: dict[str, Any]) -> _Found | None:
    return _about(obj["reviewer"], obj["interaction"]) if type(obj["content"]) is str else None


def _preference(obj: dict[str, Any]) -> _Found | None:
    return None if obj["chosen"] == obj["rejected"] else _about(obj["user"], obj["chosen"], obj["rejected"])


def _about(person: Any, *interactions: Any) -> _Found | None:
    if not (_is_id(person) and all(map(_is_id, interactions))):
        return None
    return _Found(interactions, (("person", person), *(("event", name) for name in interactions)))


_INTERACTION = _shape(_interaction, "conversation user messages reply model", "metadata")
_SHAPES = {
    "interaction": _INTERACTION,
    "thumb": _shape(_thumb, "interaction user value", "comment"),
    "correction": _shape(_correction, "interaction reviewer content"),
    "preference": _shape(_preference, "chosen rejected user"),
}


def _is_id(value: Any) -> TypeGuard[str]:
    return type(value) is str and 0 < len(value) <= MAX_ID and value.isprintable() and not value.isspace()


def _utc(value: Any) -> str | None:
    """An ISO time with its zone, in UTC as it is stored."""
    if type(value) is not str or not _PLAIN_TIME.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return None


def _keys(value: Any, levels: int) -> int | None:
    """How many keys are in a value; None where it holds what two writers of JSON could write in two ways."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return 0
    if kind is float:
        return 0 if _LEAST_FLOAT <= abs(value) <= _MOST_FLOAT else None
    if not levels:
        return None
    items = value.values() if kind is dict else value
    total = len(value) if kind is dict else 0
    for item in items:
        inside = _keys(item, levels - 1)
        if inside is None:
            return None
        total += inside
    return total
