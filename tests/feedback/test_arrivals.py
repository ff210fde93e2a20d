"""When the store got what, by its own clock, and whose account is young."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.feedback import FeedbackStore, arrivals, parse_event, tables

START = datetime(2026, 11, 1, tzinfo=UTC)


class Clock:
    """Stands in for the module's datetime: `now` is what a test says."""

    def __init__(self) -> None:
        self.time = START

    def now(self, _zone: object) -> datetime:
        return self.time

    fromtimestamp = staticmethod(datetime.fromtimestamp)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(arrivals, "datetime", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def asked(store: FeedbackStore, name: str, user: str = "u") -> None:
    """An interaction that says of itself that it is from years ago."""
    body = {"conversation": "c", "user": user, "messages": [{"role": "user", "content": "?"}], "reply": "!"}
    store.append(
        [parse_event({"type": "interaction", "id": name, "time": "2001-01-01T00:00:00Z", "model": "m", **body})]
    )


def rows(store: FeedbackStore) -> list[tuple[int, int]]:
    with store.reading() as connection:
        found = connection.execute(sa.select(tables.arrivals).order_by(tables.arrivals.c.after_seq))
        return [(row.after_seq, round(row.time_ms / 1000 - START.timestamp())) for row in found]


def test_one_row_a_minute_and_none_without_events(store: FeedbackStore, clock: Clock) -> None:
    for second in (0, 20, 59, 61, 100, 400):
        clock.time = START + timedelta(seconds=second)
        asked(store, f"i{second}")
        asked(store, f"i{second}")  # a duplicate
    assert rows(store) == [(0, 0), (3, 61), (5, 400)]


def test_what_the_store_had_at_a_time(store: FeedbackStore, clock: Clock) -> None:
    assert store.last_seq_at(START) == 0
    for second in (0, 20, 61, 400):
        clock.time = START + timedelta(seconds=second)
        asked(store, f"i{second}")
    had = {second: store.last_seq_at(START + timedelta(seconds=second)) for second in (-1, 30, 60, 121, 399, 460)}
    assert had == {-1: 0, 30: 0, 60: 2, 121: 3, 399: 3, 460: 4}


def test_a_store_that_had_no_rows_counts_from_its_first_one(store: FeedbackStore, clock: Clock) -> None:
    asked(store, "i1")
    with store.writing() as connection:
        connection.execute(sa.delete(tables.arrivals))
    assert store.last_seq_at(START + timedelta(days=9)) == 0
    clock.time = START + timedelta(days=1)
    asked(store, "i2")
    assert store.last_seq_at(START + timedelta(hours=12)) == 0
    assert store.last_seq_at(START + timedelta(days=2)) == 2


def test_a_clock_that_was_set_back_holds_nothing_up(store: FeedbackStore, clock: Clock) -> None:
    clock.time = START + timedelta(days=400)
    asked(store, "i1")
    clock.time = START
    asked(store, "i2")
    clock.time = START + timedelta(seconds=30)
    asked(store, "i3")
    assert rows(store)[1:] == [(1, 0)]
    assert store.last_seq_at(START + timedelta(hours=1)) == 3


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=12), asked_at=st.integers(0, 1500))
def test_it_never_claims_an_event_that_came_later(steps: list[int], asked_at: int) -> None:
    with pytest.MonkeyPatch.context() as patch, FeedbackStore("sqlite://") as store:
        clock = Clock()
        patch.setattr(arrivals, "datetime", clock)
        came = []
        for number, step in enumerate(steps):
            clock.time += timedelta(seconds=step)
            came.append(clock.time)
            asked(store, f"i{number}")
        time = START + timedelta(seconds=asked_at)
        had = store.last_seq_at(time)
        surely = sum(one <= time - 2 * arrivals.RESOLUTION for one in came)
        assert surely <= had <= sum(one <= time for one in came)


def test_whose_account_is_young(store: FeedbackStore, clock: Clock) -> None:
    for day, user in ((0, "old"), (9, "new"), (9, "old"), (10, "newest")):
        clock.time = START + timedelta(days=day)
        asked(store, f"{user}{day}", user)
    week = timedelta(days=7)
    assert store.young_accounts({"old", "new", "newest"}, 4, week) == {"new", "newest"}
    assert store.young_accounts({"old", "new"}, 4, timedelta(0)) == set()
    assert store.young_accounts({"old", "new"}, 1, week) == set()  # the log was as young as they were
    assert store.young_accounts({"new"}, 4, timedelta(days=11)) == set()
