"""From a request to its outcomes: who sends, how much, what it is, stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.requests import Request

from incremental_llm.feedback.api import groups
from incremental_llm.feedback.api.body import aside, parse_body, read_body
from incremental_llm.feedback.api.commit import GroupCommit, NotStoredError, QueueFullError
from incremental_llm.feedback.api.groups import Entry, Outcome, Outcomes
from incremental_llm.feedback.api.intake import Caller, idempotency_key, prepare, users_of
from incremental_llm.feedback.api.keys import Credentials, KeyTable
from incremental_llm.feedback.api.limits import Buckets, take_all
from incremental_llm.feedback.api.metrics import Metrics
from incremental_llm.feedback.api.problem import Problem, later, unavailable
from incremental_llm.feedback.api.refresh import FreshCredentials
from incremental_llm.feedback.api.scopes import Scope
from incremental_llm.feedback.api.sessions import HEADER, EndedSessions, Session, read_session
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.feedback.events import MAX_ID

_MAX_KEYS = 10_000

T = TypeVar("T")


class Service:
    """What the endpoints do; `writer` is set while the application runs."""

    def __init__(
        self,
        keys: KeyTable,
        ended: EndedSessions,
        settings: ApiSettings,
        metrics: Metrics,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self.metrics = metrics
        self.writer: GroupCommit | None = None
        self.settings, self._now = settings, now
        self._ended = ended
        self._by_key = Buckets(settings.key_rate, settings.key_burst, _MAX_KEYS, clock)
        self._by_user = Buckets(settings.user_rate, settings.user_burst, settings.max_users, clock)
        self._credentials = FreshCredentials(keys, settings.refresh_seconds, clock)

    async def one(self, request: Request, types: Sequence[str]) -> dict[str, Any]:
        """Store the one event of a request; raises Problem unless it is stored."""
        caller, body = await self.received(request, "ingest", "review")
        obj = await parse_body(body, self.settings)
        entry = await aside(len(body), lambda: prepare(obj, types, caller, self._now()))
        self.take(caller, [entry], 1)
        (outcome,) = await self._stored(caller, [entry], len(body))
        if outcome.outcome == "refused":
            if outcome.erased:
                raise Problem(409, "an event of nobody who was erased", outcome.reason, "Do not send it again.")
            do = "Correct the id, or leave it out."
            raise Problem(409, "an id that is new, or the same event again", outcome.reason, do)
        return _told(outcome, entry, caller)

    async def batch(self, request: Request, types: Sequence[str]) -> list[dict[str, Any]]:
        """Store the events of a request; what became of each, in their order."""
        caller, body = await self.received(request, "ingest", "review")
        objects = self._events_in(await parse_body(body, self.settings))
        now = self._now()
        entries: dict[int, Entry] = {}
        results: list[dict[str, Any]] = [{}] * len(objects)
        prepared = await aside(
            len(body), lambda: [_prepared(obj, types, caller, now, n) for n, obj in enumerate(objects)]
        )
        for position, (obj, found) in enumerate(zip(objects, prepared, strict=True)):
            if isinstance(found, Entry):
                entries[position] = found
            else:
                results[position] = _refused(obj, found)
                self.metrics.event("none", "refused")
        self.take(caller, list(entries.values()), len(objects))
        outcomes = await self._stored(caller, list(entries.values()), len(body)) if entries else ()
        for (position, entry), outcome in zip(entries.items(), outcomes, strict=True):
            results[position] = _told(outcome, entry, caller)
        return [{"position": position, **result} for position, result in enumerate(results)]

    async def check_admin(self, request: Request) -> None:
        """Raises Problem unless the key has the scope admin."""
        await self.caller(request, "admin")

    async def check_writer(self) -> None:
        """Raises Problem (503) when nothing can be stored; where the last transaction failed, it tries an empty one."""
        writer = self._running_writer()
        if writer.failing:
            await _answered(writer, groups.Request(()))

    async def received(self, request: Request, *scopes: Scope, session: bool = False) -> tuple[Caller, bytes]:
        """The caller and the body, which is not read for somebody who may not send it now."""
        caller = await self.caller(request, *scopes, session=session)
        _refuse_after(self._by_key.wait(caller.key.id, 1), "this API key")
        body = await read_body(request, self.settings)
        header = request.headers.get("idempotency-key")
        idempotency = idempotency_key(header, caller.key, request.url.path, body)
        return Caller(caller.key, caller.credentials, idempotency), body

    async def caller(self, request: Request, *scopes: Scope, session: bool = False) -> Caller:
        """Who asks; with `session` the review page's cookie stands for a key. Raises Problem (401, 403, 503)."""
        credentials = await self.credentials()
        key = credentials.authenticate(request.headers.get("authorization"))
        if key is None and session and (request.method == "GET" or HEADER in request.headers):
            its = await self.session(request)
            key = its.key if its else None
        if key is None:
            found = "one that is unknown or revoked" if "authorization" in request.headers else "none"
            do = "Send Authorization: Bearer KEY; illm api-key create makes one."
            raise Problem(401, "a live API key", found, do, {"WWW-Authenticate": "Bearer"})
        request.state.key = key.id
        if not key.scopes.intersection(scopes):
            found = ", ".join(sorted(key.scopes))
            raise Problem(403, f"a key with the scope {' or '.join(scopes)}", found, "Use another key.")
        return Caller(key, credentials)

    async def session(self, request: Request) -> Session | None:
        """The session of the page's cookie, None where it counts no more; raises Problem (503)."""
        session = read_session(request, await self.credentials(), self._now().timestamp())
        if session is None:
            return None
        return None if await _aside(lambda: self._ended.has(session)) else session

    async def end(self, session: Session) -> None:
        """Log out of a session; raises Problem (503)."""
        await _aside(lambda: self._ended.end(session, self._now().timestamp()))

    async def credentials(self) -> Credentials:
        """All keys and signing secrets as they are now; raises Problem (503)."""
        try:
            return await self._credentials.current()
        except sa.exc.SQLAlchemyError:
            raise unavailable("a database that can be read", "one that fails") from None

    def _running_writer(self) -> GroupCommit:
        if self.writer is None or not self.writer.alive:
            raise unavailable("a server that takes events", "one that is about to start or end")
        return self.writer

    def _events_in(self, value: Any) -> list[Any]:
        found = value.get("events") if isinstance(value, dict) else None
        most = self.settings.max_batch
        if not isinstance(found, list) or len(value) > 1 or not 0 < len(found) <= most:
            shown = f"{len(found)} events" if isinstance(found, list) else type(value).__name__
            shown += f" with the fields {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
            raise Problem(422, f'{{"events": [...]}} with 1 to {most} events and nothing else', shown, "Split it.")
        return found

    def take(self, caller: Caller, entries: Sequence[Entry], events: int) -> None:
        """Count `events` of the key, and each user's among them; raises Problem (429) and counts none of them."""
        wanted: list[tuple[Buckets, Hashable, float]] = [(self._by_key, caller.key.id, events)]
        wanted += [(self._by_user, (caller.key.name, user), n) for user, n in users_of(entries).items()]
        whose = "this API key" if self._by_key.wait(caller.key.id, events) else "one user"
        _refuse_after(take_all(wanted), whose)

    async def _stored(self, caller: Caller, entries: Sequence[Entry], size: int) -> Outcomes:
        """The outcome of each entry, once they are on the disk."""
        wanted = groups.Request(tuple(entries), caller.idempotency, size)
        outcomes = await _answered(self._running_writer(), wanted)
        if outcomes is None:
            do = "Give each new request a key of its own; repeat a request byte by byte."
            raise Problem(422, "the body that this Idempotency-Key first came with", "another one", do)
        for entry, outcome in zip(entries, outcomes, strict=True):
            self.metrics.event(entry.event.type, outcome.outcome)
        return outcomes


async def _aside(work: Callable[[], T]) -> T:
    """The result of `work` on the database, in a thread; raises Problem (503)."""
    try:
        return await asyncio.to_thread(work)
    except sa.exc.SQLAlchemyError:
        raise unavailable("a database that can be read and written", "one that fails") from None


async def _answered(writer: GroupCommit, wanted: groups.Request) -> Outcomes | None:
    """The writer's answer; raises Problem (503) where it takes nothing or could not store it."""
    try:
        return await asyncio.wrap_future(writer.submit(wanted))
    except QueueFullError:
        raise unavailable("room in the queue for the disk", "none") from None
    except NotStoredError:
        raise unavailable("a database that stores events", "that this transaction failed") from None


def _prepared(obj: Any, types: Sequence[str], caller: Caller, now: datetime, position: int) -> Entry | Problem:
    try:
        return prepare(obj, types, caller, now, position)
    except Problem as problem:
        return problem


def _refused(obj: Any, problem: Problem) -> dict[str, Any]:
    name = obj.get("id") if isinstance(obj, dict) else None
    told = {"id": name[:MAX_ID] if isinstance(name, str) else None, "outcome": "refused"}
    return {**told, "reason": f"{problem}. {problem.do}"}


def _told(outcome: Outcome, entry: Entry, caller: Caller) -> dict[str, Any]:
    told = {"id": outcome.id, "outcome": outcome.outcome}
    if outcome.outcome == "refused":
        told["reason"] = outcome.reason
    elif entry.event.type == "interaction":
        told["reply_token"] = caller.reply_token(outcome.id)
    return told


def _refuse_after(seconds: float, whose: str) -> None:
    if seconds:
        do = "Send it again after Retry-After, the same bytes."
        raise Problem(
            429, f"events of {whose} within its rate", f"that it is {seconds:.1f} s ahead", do, later(seconds)
        )
