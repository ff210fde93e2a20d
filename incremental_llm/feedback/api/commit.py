"""Group commit: one thread takes what is queued, stores it in one transaction, and only then answers all of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import sqlalchemy as sa

from incremental_llm.errors import IncrementalError
from incremental_llm.feedback.api.groups import Outcomes, Request, store_group
from incremental_llm.feedback.store import FeedbackStore

_log = logging.getLogger(__name__)

Answer = Future[Outcomes | None]
"""The outcome of each entry; None: its idempotency key belongs to a request with another body."""


class QueueFullError(IncrementalError):
    """As much is waiting for the disk as may; nothing was stored, and a later try may work."""


class NotStoredError(IncrementalError):
    """The database did not take it, or did not say so; sending it again is safe."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What a transaction did, for the metrics."""

    requests: int
    events: int
    seconds: float
    stored: bool


@dataclass(frozen=True, slots=True)
class _Queued:
    request: Request
    answer: Answer


class GroupCommit:
    """The only writer of a server. Submit from any thread; `close` stores what is queued, and then ends.

    Args:
        max_requests, max_bytes: how much may be queued; a single request always fits.
        group_events: a transaction takes no more requests once it has that many events.
        gather_seconds: how long a transaction waits for company; a transaction costs as much as some ten events.
        keep_seconds: how long the answer to an idempotency key counts.
        observe: told about each transaction, in the writer's thread.
    """

    def __init__(
        self,
        store: FeedbackStore,
        *,
        max_requests: int = 2000,
        max_bytes: int = 1 << 26,
        group_events: int = 500,
        gather_seconds: float = 0.005,
        keep_seconds: float = 7 * 86400.0,
        observe: Callable[[GroupFacts], None] = lambda facts: None,
    ) -> None:
        self._store = store
        self._max_requests, self._max_bytes, self._group_events = max_requests, max_bytes, group_events
        self._gather_seconds, self._keep_seconds = gather_seconds, keep_seconds
        self._observe = observe
        self._queue: deque[_Queued] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._open = True
        self.failing = False
        """Whether the last transaction failed."""
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be answered."""
        return self._open and self._thread.is_alive()

    def submit(self, request: Request) -> Answer:
        """Queue a request; the answer raises NotStoredError where nothing of it may be taken for stored.

        Raises:
            QueueFullError: too much is waiting already, or this is closed.
        """
        with self._changed:
            if not self.alive:
                raise QueueFullError("expected a server that takes requests, found one that is about to end.")
            full = len(self._queue) >= self._max_requests or self._bytes + request.size > self._max_bytes
            if self._queue and full:
                raise QueueFullError(
                    f"expected fewer than {self._max_requests} requests and {self._max_bytes} bytes waiting for the "
                    f"disk, found {len(self._queue)} and {self._bytes}."
                )
            answer: Answer = Future()
            self._queue.append(_Queued(request, answer))
            self._bytes += request.size
            self._changed.notify()
            return answer

    def close(self) -> None:
        """Take nothing more, store what is queued, answer it, and end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._store.kept_open():
                while group := self._next_group():
                    self._commit(group)
        finally:
            with self._changed:
                self._open = False
                left, self._queue = list(self._queue), deque()
            for queued in left:
                _fail(queued, "the writer has ended")

    def _next_group(self) -> list[_Queued]:
        """What is queued, as far as one transaction takes it; empty when this is closed and all is done."""
        with self._changed:
            while self._open and not self._queue:
                self._changed.wait()
        if self._open:
            time.sleep(self._gather_seconds)
        with self._changed:
            group: list[_Queued] = []
            events = 0
            while self._queue and (not group or events < self._group_events):
                queued = self._queue.popleft()
                self._bytes -= queued.request.size
                events += len(queued.request.entries)
                group.append(queued)
            return group

    def _commit(self, group: Sequence[_Queued]) -> None:
        """Store a group and answer it. What breaks a transaction is looked for by storing each request alone.

        That is safe when the commit's own answer was lost too: what is stored already is then a duplicate.
        """
        start = time.perf_counter()
        try:
            results = store_group(self._store, [queued.request for queued in group], self._keep_seconds)
        except Exception as error:
            self.failing = True
            if len(group) > 1 and not isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
                for queued in group:
                    self._commit([queued])
                return None
            _log.error("a transaction of %d requests failed: %s", len(group), _without_values(error))
            for queued in group:
                _fail(queued, _without_values(error))
            return self._tell(group, start, stored=False)
        self.failing = False
        for queued, outcomes in zip(group, results, strict=True):
            if queued.answer.set_running_or_notify_cancel():
                queued.answer.set_result(outcomes)
        return self._tell(group, start, stored=True)

    def _tell(self, group: Sequence[_Queued], start: float, *, stored: bool) -> None:
        events = sum(len(queued.request.entries) for queued in group)
        self._observe(GroupFacts(len(group), events, time.perf_counter() - start, stored))


def _fail(queued: _Queued, why: str) -> None:
    if queued.answer.set_running_or_notify_cancel():
        queued.answer.set_exception(NotStoredError(f"expected the database to store it, found: {why}."))


def _without_values(error: BaseException) -> str:
    """The error without the statement and its values, which are users' words."""
    if isinstance(error, sa.exc.DBAPIError):
        return f"{type(error).__name__} ({type(error.orig).__name__})"
    return type(error).__name__
