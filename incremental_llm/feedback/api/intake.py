"""From JSON to an event: what the caller's key may send, and about which replies."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from incremental_llm.feedback.api.groups import Entry, IdempotencyKey
from incremental_llm.feedback.api.keys import ApiKey, Credentials
from incremental_llm.feedback.api.problem import Problem
from incremental_llm.feedback.api.scopes import SCOPE_OF
from incremental_llm.feedback.events import (
    EVENT_TYPES,
    MAX_RANKED,
    Correction,
    Event,
    EventError,
    parse_event,
    references,
)

TOKENS = "reply_tokens"
"""The field beside an event's own that holds the tokens of the replies it is about."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends, by which credentials, with which idempotency key if any."""

    key: ApiKey
    credentials: Credentials
    idempotency: IdempotencyKey | None = None

    def reply_token(self, interaction: str) -> str:
        """The token that the caller needs for feedback on `interaction`."""
        return self.credentials.reply_token(self.key.name, interaction)


def idempotency_key(header: str | None, key: ApiKey, path: str, body: bytes) -> IdempotencyKey | None:
    """The key of a request that came with an `Idempotency-Key` header; raises Problem (400) for a wrong header."""
    if header is None:
        return None
    if not 0 < len(header) <= 200 or not header.isascii() or not header.isprintable():
        do = "A UUID made for this request is a good one."
        raise Problem(400, "an Idempotency-Key of 1 to 200 printable ASCII characters", f"{len(header)} characters", do)
    name = hashlib.sha256(f"{key.id}\n{header}".encode()).hexdigest()
    return IdempotencyKey(name, hashlib.sha256(f"{path}\n".encode() + body).hexdigest())


def prepare(obj: Any, types: Sequence[str], caller: Caller, now: datetime, position: int = 0) -> Entry:
    """The event that `obj` describes, checked against what the caller may send.

    `id` and `time` may be left out, and `type` where `types` is one. The id is then derived from API key, idempotency
    key and position, so that the same request makes the same event; without an idempotency key it is random.

    Raises:
        Problem: 422 for no such event, 403 for one that the caller may not send.
    """
    if not isinstance(obj, dict):
        raise Problem(422, "an object", type(obj).__name__, "Send one event as a JSON object.")
    fields = dict(obj)
    tokens = _tokens(fields)
    if len(types) == 1:
        fields.setdefault("type", types[0])
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in types:
        found = repr(kind)[:100] if "type" in fields else "none"
        elsewhere = kind in EVENT_TYPES if isinstance(kind, str) else False
        do = "Send it to the endpoint for its type." if elsewhere else "Correct the type."
        raise Problem(422, f"type: one of {', '.join(types)}", found, do)
    if SCOPE_OF[kind] not in caller.key.scopes:
        do = f"Use a key made with --scope {SCOPE_OF[kind]}."
        raise Problem(403, f"a key with the scope {SCOPE_OF[kind]} for a {kind}", _scopes(caller.key), do)
    if caller.key.reviewer is not None and SCOPE_OF[kind] == "review":
        fields.setdefault("reviewer", caller.key.reviewer)
    own_time = "time" in fields
    fields.setdefault("id", _new_id(kind, caller.idempotency, position))
    fields.setdefault("time", now.isoformat())
    try:
        event = parse_event(fields)
    except EventError as error:
        raise Problem(
            422, f"a {kind} as docs/events.md has it", str(error), "Correct the field that is named."
        ) from None
    _check_reviewer(event, caller.key)
    _check_tokens(event, tokens, caller)
    return Entry(event, own_time)


def users_of(entries: Sequence[Entry]) -> dict[str, int]:
    """How many of the events each user sends; a rephrase, a correction and a policy change name none."""
    counted: dict[str, int] = {}
    for entry in entries:
        user = getattr(entry.event, "user", None)
        if user is not None:
            counted[user] = counted.get(user, 0) + 1
    return counted


def _tokens(fields: dict[str, Any]) -> list[str]:
    tokens = fields.pop(TOKENS, [])
    if not isinstance(tokens, list) or len(tokens) > MAX_RANKED or not all(isinstance(token, str) for token in tokens):
        found = f"{type(tokens).__name__}" + (f" of {len(tokens)}" if isinstance(tokens, list) else "")
        do = "Give the reply_token that came back when each interaction was logged."
        raise Problem(422, f"{TOKENS}: a list of 1 to {MAX_RANKED} strings", found, do)
    return tokens


def _check_reviewer(event: Event, key: ApiKey) -> None:
    found = getattr(event, "reviewer", None)
    if found is not None and key.reviewer is not None and found != key.reviewer:
        do = "Use that reviewer's own key, or one that was made without --reviewer."
        raise Problem(403, f"the reviewer {key.reviewer[:100]!r}, whose key this is", repr(found[:100]), do)


def _check_tokens(event: Event, tokens: Sequence[str], caller: Caller) -> None:
    """A reviewer may correct any reply; other feedback needs the token of each reply that it is about."""
    if isinstance(event, Correction):
        return
    for name in references(event):
        if not any(caller.credentials.allows(token, caller.key.name, name) for token in tokens):
            raise Problem(
                403,
                f"{TOKENS}: the token of interaction {name[:100]!r}, made for {caller.key.name[:100]!r}",
                f"{len(tokens)} tokens, none of which is it" if tokens else "none",
                "Give the reply_token that came back when this key, or another of its name, logged the interaction.",
            )


def _new_id(kind: str, idempotency: IdempotencyKey | None, position: int) -> str:
    if idempotency is None:
        return f"{kind}-{uuid.uuid4().hex}"
    derived = hashlib.sha256(f"{idempotency.id} {position}".encode()).hexdigest()
    return f"{kind}-{derived[:32]}"


def _scopes(key: ApiKey) -> str:
    return "one with " + (", ".join(sorted(key.scopes)) or "no scope")
