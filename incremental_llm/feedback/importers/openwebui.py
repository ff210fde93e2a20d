"""Open WebUI's feedback export: a rating, with a snapshot of the chat that it was given in.

The rated reply becomes an interaction with everything that was said before it, and the rating a thumb. Where the user
saw several replies to one message and liked this one, it is preferred to each of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from incremental_llm.feedback.events import Event, EventError
from incremental_llm.feedback.importers.shapes import event, name_of, text_of, time_of

SOURCE = "openwebui"

Messages = dict[str, Mapping[str, Any]]


def looks_like(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of this shape."""
    return "snapshot" in record and "meta" in record


def events_of(record: Mapping[str, Any]) -> Iterator[Event]:
    """The events of one record of feedback, interactions first.

    Raises:
        EventError: no rating, or no snapshot that holds the rated reply.
    """
    data, meta = _object(record, "data"), _object(record, "meta")
    rating = data.get("rating")
    if rating not in (1, -1):
        raise EventError(f"data.rating: expected 1 or -1, found {rating!r}")
    messages = _messages(_object(record, "snapshot"))
    rated = str(meta.get("message_id"))
    if rated not in messages:
        raise EventError(f"meta.message_id: expected a message of the snapshot, found {rated!r}")
    user, told = name_of(record.get("user_id"), "user_id"), time_of(record.get("updated_at", record.get("created_at")))
    chat = name_of(meta.get("chat_id"), "meta.chat_id")
    served = _interaction(messages, rated, chat, user, record)
    yield served
    said = "; ".join(str(part) for part in (data.get("reason"), data.get("comment")) if part)
    key = name_of(record.get("id"), "id")
    yield event(SOURCE, "thumb", key, time=told, interaction=served.id, user=user, value=rating, comment=said or None)
    if rating == 1:
        for other in _siblings(messages, rated):
            worse = _interaction(messages, other, chat, user, record)
            yield worse
            yield event(
                SOURCE, "preference", f"{key}:{other}", time=told, chosen=served.id, rejected=worse.id, user=user
            )


def _interaction(messages: Messages, name: str, chat: str, user: str, record: Mapping[str, Any]) -> Event:
    reply = messages[name]
    if reply.get("role") != "assistant":
        raise EventError(f"meta.message_id: expected a reply of the assistant, found one of {reply.get('role')!r}")
    return event(
        SOURCE,
        "interaction",
        f"{chat}:{name}",
        time=time_of(reply.get("timestamp") or record.get("created_at")),
        conversation=chat,
        user=user,
        messages=[*_system(record), *_before(messages, name)],
        reply=text_of(reply.get("content"), f"message {name}"),
        model=str(reply.get("model") or _object(record, "data").get("model_id") or "unknown"),
    )


def _system(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The chat's own system prompt, where the snapshot has one."""
    for holder in _chats(_object(record, "snapshot")):
        for said in (holder.get("system"), _or_empty(holder.get("params")).get("system")):
            if isinstance(said, str) and said:
                return [{"role": "system", "content": said}]
    return []


def _before(messages: Messages, name: str) -> list[dict[str, str]]:
    """The turns that lead to a reply, oldest first, by their parents."""
    turns: list[dict[str, str]] = []
    place, seen = messages[name].get("parentId"), {name}
    while place is not None:
        turn = messages.get(str(place))
        if turn is None or str(place) in seen:
            raise EventError(f"snapshot: expected the message {place!r} before {name!r}, found none")
        seen.add(str(place))
        role = turn.get("role")
        if role not in ("system", "user", "assistant"):
            raise EventError(f"snapshot: expected a turn of system, user or assistant, found {role!r}")
        turns.append({"role": str(role), "content": text_of(turn.get("content"), f"message {place}")})
        place = turn.get("parentId")
    if not turns:
        raise EventError(f"snapshot: expected a question before the reply {name!r}, found none")
    return turns[::-1]


def _siblings(messages: Messages, name: str) -> list[str]:
    """Other finished replies to the same message, in order of their ids."""
    parent = messages[name].get("parentId")
    return sorted(
        other
        for other, turn in messages.items()
        if other != name
        and turn.get("parentId") == parent
        and turn.get("role") == "assistant"
        and turn.get("done", True)
        and isinstance(turn.get("content"), str)
        and turn["content"] not in ("", messages[name].get("content"))
    )


def _messages(snapshot: Mapping[str, Any]) -> Messages:
    for holder in _chats(snapshot):
        found = _or_empty(holder.get("history")).get("messages")
        if isinstance(found, list):
            return {str(turn.get("id")): turn for turn in found if isinstance(turn, Mapping)}
        if isinstance(found, Mapping):
            return {str(name): turn for name, turn in found.items() if isinstance(turn, Mapping)}
    raise EventError("snapshot.history.messages: expected the chat's messages, found none")


def _chats(snapshot: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The snapshot and the chats in it: versions differ in how deep the history is."""
    holder: Mapping[str, Any] = snapshot
    while holder:
        yield holder
        holder = _or_empty(holder.get("chat"))


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    if not isinstance(found, Mapping):
        raise EventError(f"{name}: expected an object, found {type(found).__name__}")
    return found


def _or_empty(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
