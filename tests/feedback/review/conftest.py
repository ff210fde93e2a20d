"""A queue on a database of its own, with a clock that is set and a draw that never seeds unless told so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.dataset.dedup import same_statement
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.review import Proposal, ReviewQueue, ReviewSettings

START = datetime(2026, 11, 1, 12, tzinfo=UTC)


def interaction(name: str, reply: str = "14 days.", asked: str = "How long?", user: str = "asker") -> Any:
    messages = [{"role": "user", "content": asked}]
    said = {"conversation": name, "user": user, "messages": messages, "reply": reply, "model": "m"}
    return parse_event({"type": "interaction", "id": name, "time": START.isoformat(), **said})


@dataclass
class World:
    """The store, its queue, and the time and the draw that the queue sees."""

    store: FeedbackStore
    settings: ReviewSettings
    time: list[datetime] = field(default_factory=lambda: [START])
    drawn: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        clock, draw = (lambda: self.time[0]), (lambda: self.drawn[0])
        self.queue = ReviewQueue(self.store, self.settings, same=same_statement, now=clock, draw=draw)

    def later(self, seconds: float) -> None:
        self.time[0] += timedelta(seconds=seconds)

    def serve(self, name: str, **fields: str) -> str:
        """Put an interaction into the log."""
        self.store.append([interaction(name, **fields)])
        return name

    def put(self, name: str = "i1", **fields: Any) -> str:
        """The id of an item on the reply of a new interaction."""
        reply, asked = fields.pop("reply", f"14 days, said {name}."), fields.pop("asked", "How long?")
        if name not in self.store.get([name]):
            self.serve(name, reply=reply, asked=asked)
        told = {"kind": "moderation", "reason": "unsure", "priority": 0.5, "interaction": name, "authors": ("asker",)}
        prompt = [{"role": "user", "content": asked}]
        proposal = Proposal.model_validate({**told, "prompt": prompt, "reply": reply, **fields})
        assert self.queue.add([proposal]) == 1
        return proposal.id

    def decide(self, item: str, reviewer: str, *what: Any) -> Any:
        self.queue.claim(item, reviewer)
        return self.queue.decide(item, reviewer, *what)

    def events(self) -> list[Any]:
        """What reviewers have taught, in order."""
        return [stored.event for stored in self.store.read() if stored.event.type != "interaction"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as store:
        yield lambda **settings: World(store, ReviewSettings(**settings))


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


@pytest.fixture(scope="session")
def world_on() -> Callable[..., World]:
    """A world on a store of the test's own."""
    return lambda store, **settings: World(store, ReviewSettings(**settings))
