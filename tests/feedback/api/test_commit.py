"""The writer: one transaction for all that is queued, an outcome for each, and nobody answered too early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.feedback import Event, FeedbackStore, parse_event
from incremental_llm.feedback.api import commit, tables
from incremental_llm.feedback.api.commit import GroupCommit, GroupFacts, NotStoredError, QueueFullError
from incremental_llm.feedback.api.groups import Entry, IdempotencyKey, Request, store_group
from incremental_llm.feedback.tables import create_missing

TIME = "2026-11-01T12:00:00Z"
KEEP = 3600.0


def served(name: str, reply: str = "yes") -> Event:
    body = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": name}], "reply": reply}
    return parse_event({"type": "interaction", "id": name, "time": TIME, "model": "m", **body})


def wants(*events: Event, key: str | None = None, body: str = "b") -> Request:
    return Request(tuple(Entry(event) for event in events), IdempotencyKey(key, body) if key else None, size=10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        with opened.writing() as connection:
            create_missing(connection, tables.metadata)
        yield opened


class Gate:
    """Stands in for `store_group`: holds the writer until it is opened, then does what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.error: Callable[[list[Request]], BaseException | None] = lambda requests: None
        monkeypatch.setattr(commit, "store_group", self)

    def __call__(self, store: FeedbackStore, requests: list[Request], keep: float) -> Any:
        self.groups.append(len(requests))
        self.entered.set()
        self.opened.wait()
        if error := self.error(requests):
            raise error
        return store_group(store, requests, keep)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def stored(store: FeedbackStore) -> list[str]:
    return [one.event.id for one in store.read()]


def held(writer: GroupCommit, gate: Gate) -> Any:
    """The answer to a first request, in whose transaction the writer is."""
    answer = writer.submit(wants(served("first")))
    gate.entered.wait()
    return answer


def test_what_is_queued_meanwhile_is_one_transaction(store: FeedbackStore, gate: Gate) -> None:
    facts: list[GroupFacts] = []
    writer = GroupCommit(store, observe=facts.append)
    answers = [held(writer, gate), *(writer.submit(wants(served(f"i{n}"), served(f"j{n}"))) for n in range(5))]
    assert not any(answer.done() for answer in answers)
    gate.opened.set()
    assert [[one.outcome for one in answer.result()] for answer in answers] == [["added"], *[["added"] * 2] * 5]
    writer.close()
    assert gate.groups == [1, 5]
    assert [(one.requests, one.events, one.stored) for one in facts] == [(1, 1, True), (5, 10, True)]


def test_a_transaction_stops_growing(store: FeedbackStore, gate: Gate) -> None:
    writer = GroupCommit(store, group_events=3)
    held(writer, gate)
    for n in range(4):
        writer.submit(wants(served(f"i{n}"), served(f"j{n}")))
    gate.opened.set()
    writer.close()
    assert gate.groups == [1, 2, 2]
    assert len(stored(store)) == 9


@pytest.mark.parametrize("bound", [{"max_requests": 2}, {"max_bytes": 25}])
def test_a_full_queue_refuses_and_takes_again_when_there_is_room(
    store: FeedbackStore, gate: Gate, bound: dict[str, int]
) -> None:
    writer = GroupCommit(store, **bound)  # type: ignore[arg-type]
    answers = [held(writer, gate), *(writer.submit(wants(served(f"i{n}"))) for n in range(2))]
    with pytest.raises(QueueFullError, match="found 2 and 20"):
        writer.submit(wants(served("too-much")))
    gate.opened.set()
    assert all(answer.result() for answer in answers)
    assert writer.submit(wants(served("later"))).result()[0].outcome == "added"
    writer.close()
    assert stored(store) == ["first", "i0", "i1", "later"]


def test_a_transaction_that_fails_answers_none_and_the_next_goes_on(store: FeedbackStore, gate: Gate) -> None:
    writer = GroupCommit(store)
    first = held(writer, gate)
    answers = [writer.submit(wants(served(f"i{n}"))) for n in range(3)]
    gate.error = lambda requests: sa.exc.OperationalError("INSERT", {}, OSError("said in private"))
    gate.opened.set()
    for answer in (first, *answers):
        with pytest.raises(NotStoredError, match=r"OperationalError \(OSError\)") as caught:
            answer.result()
        assert "private" not in str(caught.value)
    assert gate.groups == [1, 3]  # a database that is away is not asked again for each of them
    assert writer.failing
    gate.error = lambda requests: None
    assert writer.submit(wants(served("i0"))).result()[0].outcome == "added"
    assert not writer.failing
    writer.close()


def test_a_commit_that_fails_stores_nothing(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is in the transaction itself, after everything was written to it."""
    writer = GroupCommit(store)

    def failing(*_given: object) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("disk full"))

    with monkeypatch.context() as broken:
        broken.setattr("incremental_llm.feedback.api.groups._remember", failing)
        with pytest.raises(NotStoredError):
            writer.submit(wants(served("i1"))).result()
    assert stored(store) == []
    writer.close()


def test_one_request_that_breaks_its_transaction_fails_alone(store: FeedbackStore, gate: Gate) -> None:
    writer = GroupCommit(store)
    first = held(writer, gate)
    answers = [writer.submit(wants(served(name))) for name in ("i1", "poison", "i2")]
    poisoned = lambda requests: any(entry.event.id == "poison" for one in requests for entry in one.entries)  # noqa: E731
    gate.error = lambda requests: RuntimeError() if poisoned(requests) else None
    gate.opened.set()
    assert [answer.result()[0].outcome for answer in (first, answers[0], answers[2])] == ["added"] * 3
    with pytest.raises(NotStoredError, match="RuntimeError"):
        answers[1].result()
    writer.close()
    assert stored(store) == ["first", "i1", "i2"]


def test_what_was_stored_by_a_commit_that_seemed_to_fail_is_found(
    store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def lost_answer(store: FeedbackStore, requests: list[Request], keep: float) -> Any:
        done = store_group(store, requests, keep)
        tries.append(len(requests))
        if len(tries) == 2:
            raise RuntimeError
        return done

    gate = Gate(monkeypatch)
    writer = GroupCommit(store)
    held(writer, gate)
    monkeypatch.setattr(commit, "store_group", lost_answer)
    tries.append(1)
    answers = [writer.submit(wants(served(name))) for name in ("i1", "i2")]
    gate.opened.set()
    assert [answer.result()[0].outcome for answer in answers] == ["duplicate", "duplicate"]
    writer.close()
    assert stored(store) == ["first", "i1", "i2"]


def test_closing_stores_what_is_queued_and_takes_nothing_more(store: FeedbackStore, gate: Gate) -> None:
    writer = GroupCommit(store)
    answers = [held(writer, gate), *(writer.submit(wants(served(f"i{n}"))) for n in range(4))]
    closing = threading.Thread(target=writer.close)
    closing.start()
    while writer.alive:
        pass
    with pytest.raises(QueueFullError, match="about to end"):
        writer.submit(wants(served("late")))
    gate.opened.set()
    closing.join()
    assert all(answer.done() and answer.result() for answer in answers)
    assert stored(store) == ["first", "i0", "i1", "i2", "i3"]


def test_equal_idempotency_keys_in_one_transaction(store: FeedbackStore) -> None:
    same, other = wants(served("i1"), key="k"), wants(served("i1"), key="k")
    results = store_group(store, [same, other, wants(served("i2"), key="k", body="c")], KEEP)
    assert results[0] == results[1]
    assert results[2] is None
    assert [one.outcome for one in results[0] or ()] == ["added"]
    assert stored(store) == ["i1"]


def test_the_time_of_the_first_counts_within_one_transaction_too(store: FeedbackStore) -> None:
    early, late = served("i1"), served("i1").model_copy(update={"time": served("i1").time.replace(hour=13)})
    asked = [Request((Entry(early, own_time=False),)), Request((Entry(late, own_time=False),)), wants(late)]
    found = [results[0].outcome for results in store_group(store, asked, KEEP) if results]
    assert found == ["added", "duplicate", "refused"]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 5), st.sampled_from("xy")), max_size=3),
            st.sampled_from([None, "k1", "k2"]),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_however_requests_are_grouped_each_is_answered_as_if_alone(
    tmp_path_factory: pytest.TempPathFactory, asked: list[Any], sizes: list[int]
) -> None:
    """Groups of any sizes give the outcomes and the log that one request at a time gives."""
    requests = [
        wants(*(served(f"i{n}", reply) for n, reply in events), key=key, body=f"{events}") for events, key, _ in asked
    ]
    found = []
    for grouped in (False, True):
        folder = tmp_path_factory.mktemp("groups")
        with FeedbackStore(f"sqlite:///{folder / 'f.db'}") as store:
            with store.writing() as connection:
                create_missing(connection, tables.metadata)
            results, place = [], 0
            for size in sizes if grouped else [1] * len(requests):
                results += store_group(store, requests[place : place + size], KEEP)
                place += size
            results += store_group(store, requests[place:], KEEP)
            found.append((results, stored(store)))
    assert found[0] == found[1]
