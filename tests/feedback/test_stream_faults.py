"""The stream against a topic in memory that fails where it is told to: nothing lost, nothing stored or parked twice."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from confluent_kafka import TIMESTAMP_CREATE_TIME, KafkaError, KafkaException, Message, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.errors import InputError, StreamError
from incremental_llm.feedback import FeedbackStore, StreamSettings, consume, parked
from incremental_llm.feedback.parking import KEPT_BYTES, parked_count, positions
from incremental_llm.feedback.stream import first_offset


class Crash(BaseException):
    """The process dies here."""


class Topic:
    """What the brokers keep: partitions, and the offsets of one group; `at` is called at each step that may fail."""

    def __init__(self, *partitions: list[bytes | None]) -> None:
        self.partitions = list(partitions)
        self.low = [0] * len(partitions)
        self.committed: dict[int, int] = {}
        self.begun: list[dict[int, int]] = []
        self.at: Callable[[str], None] = lambda step: None

    def consumer(self, config: dict[str, Any]) -> Member:
        return Member(self, config)


class Member:
    """A consumer that reads all partitions of a topic, as librdkafka would."""

    def __init__(self, topic: Topic, config: dict[str, Any]) -> None:
        self.topic, self.config = topic, config
        self.position: dict[int, int] | None = None
        self.ended: set[int] = set()

    def list_topics(self, timeout: float) -> Any:
        self.topic.at("list")
        return SimpleNamespace(topics={"feedback": None, "orders": None})

    def poll(self, timeout: float) -> None:
        self.topic.at("poll")

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.topic.at("committed")
        return [TopicPartition("feedback", p.partition, self.topic.committed.get(p.partition, -1001)) for p in places]

    def get_watermark_offsets(self, place: TopicPartition, **_: Any) -> tuple[int, int]:
        return self.topic.low[place.partition], len(self.topic.partitions[place.partition])

    def assign(self, places: list[TopicPartition]) -> None:
        self.position = {place.partition: place.offset for place in places}
        self.topic.begun.append(dict(self.position))

    def consume(self, count: int, timeout: float) -> list[Message]:
        if self.position is None:
            self.on_assign(self, [TopicPartition("feedback", number) for number in range(len(self.topic.partitions))])
        assert self.position is not None
        self.topic.at("consume")
        found: list[Message] = []
        for number, start in self.position.items():
            held = self.topic.partitions[number]
            end = min(len(held), start + count - len(found))
            for offset in range(start, end):
                time = (TIMESTAMP_CREATE_TIME, 1_793_534_400_000)
                body = {"key": b"k", "value": held[offset], "timestamp": time}
                found.append(Message(topic="feedback", partition=number, offset=offset, **body))
            self.position[number] = end
            if end == len(held) and len(found) < count and number not in self.ended:
                self.ended.add(number)
                error = KafkaError(KafkaError._PARTITION_EOF)
                found.append(Message(topic="feedback", partition=number, offset=end, error=error))
        return found

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        self.topic.at("commit")
        self.topic.committed |= {place.partition: place.offset for place in offsets}
        self.topic.at("committed there")
        return [TopicPartition("feedback", place.partition, place.offset) for place in offsets]

    def close(self) -> None:
        if self.position:
            self.on_revoke(self, [TopicPartition("feedback", number) for number in self.position])


def event(name: str, text: str = "hello") -> bytes:
    body = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": text}], "reply": "r"}
    return json.dumps(
        {"type": "interaction", "id": name, "time": "2026-11-01T12:00:00Z", "model": "m", **body}
    ).encode()


def where(**more: Any) -> StreamSettings:
    return StreamSettings(brokers="b:9092", topic="feedback", group="g", wait_seconds=0.001, **more)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Topic]:
    """Make every consumer one of this topic."""

    def start(*partitions: list[bytes | None]) -> Topic:
        topic = Topic(*partitions)
        monkeypatch.setattr("confluent_kafka.Consumer", topic.consumer)
        return topic

    return start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def ids(store: FeedbackStore) -> list[str]:
    return sorted(stored.event.id for stored in store.read())


def places(store: FeedbackStore) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in parked(store)]


def failing(step: str, error: BaseException, times: int = 1) -> Callable[[str], None]:
    left = [times]

    def at(found: str) -> None:
        if found == step and left[0]:
            left[0] -= 1
            raise error

    return at


KINDS = st.one_of(
    st.integers(0, 12).map(lambda n: event(f"e{n}")),
    st.integers(0, 12).map(lambda n: event(f"e{n}", "something else")),
    st.sampled_from([None, b"", b"{", b"\xff", b"[]", b'{"type":"thumb"}', b'{"a":1,"a":2}']),
)


@settings(max_examples=30, deadline=None)
@given(
    partitions=st.lists(st.lists(KINDS, max_size=12), min_size=1, max_size=3),
    batch=st.integers(1, 7),
    crashes=st.lists(st.integers(1, 9), max_size=4),
    forgets=st.booleans(),
)
def test_whatever_crashes_every_message_is_stored_once_or_parked_once(
    partitions: list[list[bytes | None]], batch: int, crashes: list[int], forgets: bool
) -> None:
    topic = Topic(*partitions)
    with pytest.MonkeyPatch.context() as patch, FeedbackStore("sqlite://") as store:
        patch.setattr("confluent_kafka.Consumer", topic.consumer)
        sa.event.listen(store._engine, "commit", lambda connection: topic.at("store"))
        for steps in crashes:
            left = [steps]

            def at(step: str, left: list[int] = left) -> None:
                left[0] -= step in ("store", "commit", "committed there")
                if left[0] < 1:
                    raise Crash

            topic.at = at
            with contextlib.suppress(Crash):
                consume(store, where(batch_messages=batch), until_end=True)
            topic.at = lambda step: None
            stored = positions(store, "feedback", "g")
            assert all(offset <= stored[number] for number, offset in topic.committed.items())
            if forgets:
                topic.committed.clear()
        consume(store, where(batch_messages=batch), until_end=True)

        told = {}  # the first content of each id, in whatever order the batches took them
        found = {stored.event.id: stored.event for stored in store.read()}
        kept, sent = (
            set(places(store)),
            [(n, o, raw) for n, held in enumerate(partitions) for o, raw in enumerate(held)],
        )
        for number, offset, raw in sent:
            try:
                told[number, offset] = json.loads(raw or b"")["id"]
            except (ValueError, KeyError, TypeError):
                assert (number, offset) in kept
        assert set(found) == set(told.values())
        for (number, offset), name in told.items():
            same = json.loads(partitions[number][offset] or b"")["messages"][0]["content"]
            assert ((number, offset) in kept) == (found[name].messages[0].content != same)
        assert store.head() == len(found)
        assert topic.committed == {n: len(held) for n, held in enumerate(partitions) if held}


def test_poison_in_the_middle_is_parked_with_its_bytes_and_reason(serve: Any, store: FeedbackStore) -> None:
    unlike = event("i1", "other")
    serve([event("i1"), b"no json", None, event("i2"), unlike, b'{"type":"thumb","id":"t"}', b"x" * 3000, event("i3")])
    report = consume(store, where(max_message_bytes=2000), until_end=True)
    assert (report.messages, report.added, report.duplicates, report.parked, report.lag) == (8, 3, 0, 5, 0)
    assert ids(store) == ["i1", "i2", "i3"]
    reasons = {one.offset: one.reason for one in parked(store)}
    assert reasons[1] == "expected JSON, found an error at position 1: Expecting value"
    assert "tombstone" in reasons[2]
    assert "id 'i1' is stored with other content" in reasons[4]
    assert "interaction: missing" in reasons[5]
    assert reasons[6] == "expected at most 2000 bytes, found 3000"
    first, tombstone, other = (next(one for one in parked(store) if one.offset == place) for place in (1, 2, 4))
    assert (first.topic, first.partition, first.key, first.value) == ("feedback", 0, b"k", b"no json")
    assert first.time is not None and first.time.isoformat() == "2026-11-01T12:00:00+00:00"
    assert (tombstone.value, tombstone.size, other.value) == (None, 0, unlike)


def test_of_a_large_message_the_beginning_is_kept_and_the_digest_of_all(serve: Any, store: FeedbackStore) -> None:
    serve([b"x" * (KEPT_BYTES + 1)])
    consume(store, where(), until_end=True)
    (one,) = parked(store)
    assert (len(one.value or b""), one.size, len(one.digest)) == (KEPT_BYTES, KEPT_BYTES + 1, 64)


def test_nesting_that_would_overflow_later_is_parked(serve: Any, store: FeedbackStore) -> None:
    deep = b'{"type":"odd","id":"o","x":' + b"[" * 600 + b"]" * 600 + b"}"
    serve([event("i1"), deep, event("i2")])
    assert consume(store, where(), until_end=True).parked == 1
    assert ids(store) == ["i1", "i2"]


@pytest.mark.parametrize("step", ["store", "commit", "committed there"])
def test_a_crash_around_the_commits_loses_nothing(serve: Any, store: FeedbackStore, step: str) -> None:
    topic = serve([event("i1"), b"?", event("i2")])
    topic.at = failing(step, Crash())
    sa.event.listen(store._engine, "commit", lambda connection: topic.at("store"))
    topic.at = failing(step, Crash(), times=2)  # the second time while the consumer is closed
    with pytest.raises(Crash):
        consume(store, where(), until_end=True)
    assert (ids(store), topic.committed) == {
        "store": ([], {}),
        "commit": (["i1", "i2"], {}),
        "committed there": (["i1", "i2"], {0: 3}),
    }[step]
    topic.at = lambda step: None
    again = consume(store, where(), until_end=True)
    assert (again.added, again.duplicates) == {"store": (2, 0), "commit": (0, 2), "committed there": (0, 0)}[step]
    assert (ids(store), places(store), topic.committed) == (["i1", "i2"], [(0, 1)], {0: 3})


def test_a_database_that_fails_for_a_while_gets_the_same_batch_again(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1"), b"?"])
    busy = sa.exc.OperationalError("INSERT what a user said", {}, sqlite3.OperationalError("database is locked"))
    topic.at = failing("store", busy, times=3)
    sa.event.listen(store._engine, "commit", lambda connection: topic.at("store"))
    said: list[str] = []
    report = consume(store, where(), until_end=True, say=said.append)
    assert (report.messages, report.added, report.parked) == (2, 1, 1)
    assert "the database: database is locked; try 2 of 6 in 0.001 s" in said
    assert not any("what a user said" in line for line in said)


def test_a_database_that_fails_for_good_ends_it_and_nothing_is_committed(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1")])
    busy = sa.exc.OperationalError("", {}, sqlite3.OperationalError("disk I/O error"))
    topic.at = failing("store", busy, times=9)
    sa.event.listen(store._engine, "commit", lambda connection: topic.at("store"))
    with pytest.raises(StreamError, match=r"expected the database to answer, found: disk I/O error. Nothing was skip"):
        consume(store, where(tries=3), until_end=True)
    assert (ids(store), topic.committed) == ([], {})


def test_a_refused_commit_is_said_and_tried_again(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1"), event("i2")])
    topic.at = failing("commit", KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS)))
    said: list[str] = []
    assert consume(store, where(), until_end=True, say=said.append).added == 2
    assert any("REBALANCE_IN_PROGRESS" in line for line in said)
    assert topic.committed == {0: 2}


def test_what_the_broker_denies_ends_it_without_the_secret(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1")])
    denied = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "hunter2 was no good")
    topic.at = failing("committed", KafkaException(denied), times=9)
    settings = where(options={"sasl.password": "hunter2"}, tries=2)
    assert "hunter2" not in repr(settings)
    with pytest.raises(InputError, match="the right to read") as caught:
        consume(store, settings, until_end=True)
    assert "hunter2" not in str(caught.value)


def test_brokers_that_do_not_answer_are_waited_for_and_then_named(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1")])
    topic.at = failing("list", KafkaException(KafkaError(KafkaError._TRANSPORT)), times=2)
    assert consume(store, where(), until_end=True).added == 1
    topic.at = failing("list", KafkaException(KafkaError(KafkaError._TRANSPORT)), times=9)
    with pytest.raises(StreamError, match="expected the brokers to answer"):
        consume(store, where(), until_end=True)


def test_a_topic_that_is_not_there_and_options_that_would_lose_messages(serve: Any, store: FeedbackStore) -> None:
    serve([])
    wrong = StreamSettings(brokers="b:9092", topic="feedbak", group="g")
    with pytest.raises(InputError, match="expected the topic 'feedbak' at b:9092, found 'feedback'"):
        consume(store, wrong, until_end=True)
    with pytest.raises(InputError, match=r"auto.offset.reset .anything but earliest would skip"):
        where(options={"auto.offset.reset": "latest"})
    with pytest.raises(InputError, match="as group, found nothing"):
        StreamSettings(brokers="b:9092", topic="feedback", group=" ")


def test_told_to_end_it_stores_the_batch_at_hand(serve: Any, store: FeedbackStore) -> None:
    topic, stop = serve([event(f"i{n}") for n in range(9)]), threading.Event()
    topic.at = lambda step: stop.set() if step == "consume" else None
    report = consume(store, where(batch_messages=4), stop=stop)
    assert (report.added, report.lag, topic.committed) == (4, 5, {0: 4})


@pytest.mark.parametrize(
    ("stored", "committed", "low", "high", "begins"),
    [
        (5, 5, 0, 9, 5),
        (5, 3, 0, 9, 3),  # a crash before the offsets were committed
        (3, 5, 0, 9, 3),  # the database was restored from a copy
        (None, 5, 0, 9, 0),  # a new database
        (5, None, 2, 9, 2),  # the brokers forgot the group, or the topic was made anew
        (3, 3, 5, 9, 5),  # the brokers deleted what was not read yet
        (7, 7, 0, 4, 0),  # the topic was made anew, and the group's offsets stayed
    ],
)
def test_a_partition_begins_where_nothing_is_skipped(
    stored: int | None, committed: int | None, low: int, high: int, begins: int
) -> None:
    assert first_offset(stored, committed, low, high) == begins


def test_messages_that_the_brokers_deleted_unread_are_counted(serve: Any, store: FeedbackStore) -> None:
    topic = serve([event("i1"), event("i2")])
    consume(store, where(), until_end=True)
    topic.partitions[0] += [event("i3"), event("i4"), event("i5")]
    topic.low[0] = 4
    said: list[str] = []
    report = consume(store, where(), until_end=True, say=said.append)
    assert (report.deleted, ids(store)) == (2, ["i1", "i2", "i5"])
    assert any("2 messages from offset 2 on were deleted" in line for line in said)


def test_a_restored_database_gets_what_the_group_was_past(serve: Any, store: FeedbackStore, tmp_path: Path) -> None:
    topic = serve([event("i1"), event("i2")])
    consume(store, where(), until_end=True)
    with FeedbackStore(f"sqlite:///{tmp_path / 'new.db'}") as new:
        assert consume(new, where(), until_end=True).added == 2
        assert parked_count(new) == 0
    assert topic.begun == [{0: 0}, {0: 0}]
