"""Where a batch ends and whose accounts are young, by the store's clock and not by what events say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.feedback import FeedbackStore, arrivals, parse_event
from incremental_llm.pending import batch_end, young_among

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    """u1 asks on day 0, u2 on day 9 and u3 today; each says that it was in 2001."""
    with FeedbackStore("sqlite://") as opened:
        note = arrivals.note
        today = datetime.now(UTC)
        for user, came in (("u1", START), ("u2", START + timedelta(days=9)), ("u3", today)):
            monkeypatch.setattr(arrivals, "note", lambda connection, before, now=came: note(connection, before, now))
            body = {"conversation": "c", "messages": [{"role": "user", "content": "?"}], "reply": "!", "model": "m"}
            head = {"type": "interaction", "id": f"i-{user}", "time": "2001-01-01T00:00:00Z", "user": user}
            opened.append([parse_event(head | body)])
        yield opened


def recipe(**trust: object) -> RunConfig:
    return RunConfig.model_validate({"compile": {"trust": trust}})


def test_a_batch_ends_before_what_came_within_the_quarantine_period(store: FeedbackStore) -> None:
    assert batch_end(store, recipe()) == 3
    assert batch_end(store, recipe(quarantine_hours=24.0)) == 2
    assert batch_end(store, recipe(quarantine_hours=24.0, enabled=False)) == 3


def test_whose_accounts_are_young_at_the_end_of_a_batch(store: FeedbackStore) -> None:
    events = list(store.read())
    assert young_among(events[:2], {}, store, recipe()) == {"u2"}
    assert young_among(events[:2], {}, store, recipe(young_days=10.0)) == set()  # the log was younger
    assert young_among(events[:2], {}, store, recipe(enabled=False)) == set()
    assert young_among(events[1:2], {"i-u1": events[0]}, store, recipe()) == {"u2"}
