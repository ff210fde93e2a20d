"""The stream against librdkafka's own mock cluster, over sockets: groups, rebalances, commits.

A new group waits 3 seconds for its members there, and one that a member has left waits 5.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from incremental_llm.errors import InputError, StreamError
from incremental_llm.feedback import FeedbackStore, StreamSettings, consume, parked
from incremental_llm.feedback.parking import positions

FAST = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "100", "fetch.wait.max.ms": "10", "log_level": "0"}


@pytest.fixture(scope="module")
def producer() -> confluent_kafka.Producer:
    """Starts the cluster; it lives as long as this client. A topic that is written to is made, with four partitions."""
    return confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})


@pytest.fixture
def brokers(producer: confluent_kafka.Producer) -> str:
    found = producer.list_topics(timeout=10).brokers.values()
    return ",".join(f"{broker.host}:{broker.port}" for broker in found)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def event(name: str) -> bytes:
    body = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": "hello"}], "reply": "r"}
    return json.dumps(
        {"type": "interaction", "id": name, "time": "2026-11-01T12:00:00Z", "model": "m", **body}
    ).encode()


def send(producer: confluent_kafka.Producer, topic: str, *values: bytes | None) -> None:
    for number, value in enumerate(values):
        producer.produce(topic, value=value, key=b"key", partition=number % 4)
    assert producer.flush(10) == 0


def ids(store: FeedbackStore) -> set[str]:
    return {stored.event.id for stored in store.read()}


class Crash(BaseException):
    """The process dies here."""


def test_a_crash_before_the_offset_commit_delivers_twice_and_stores_once(
    producer: Any, brokers: str, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(confluent_kafka.Consumer):
        def commit(self, **_: Any) -> Any:
            raise Crash

    names = {f"i{n}" for n in range(10)}
    send(producer, "crash", *map(event, sorted(names)[:5]), b"poison", None, *map(event, sorted(names)[5:]))
    settings = StreamSettings(brokers, "crash", "g", FAST, batch_seconds=0.1)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("confluent_kafka.Consumer", Dying)
        consume(store, settings, until_end=True)
    stored = ids(store)
    assert stored and positions(store, "crash", "g")
    report = consume(store, settings, until_end=True)
    assert (report.messages, report.duplicates, report.parked, report.lag) == (12, len(stored), 2, 0)
    assert (ids(store), store.head()) == (names, 10)
    assert sorted((one.key, one.value) for one in parked(store) if one.value) == [(b"key", b"poison")]
    assert len(parked(store)) == 2
    assert sum(positions(store, "crash", "g").values()) == 12


def test_two_consumers_of_a_group_share_the_partitions_and_store_everything_once(
    producer: Any, brokers: str, store: FeedbackStore
) -> None:
    send(producer, "shared", *(event(f"a{n}") for n in range(20)))
    settings = StreamSettings(brokers, "shared", "g", FAST, batch_messages=7, batch_seconds=0.05)
    stop, said, reports, errors = threading.Event(), ([], []), {}, []

    def read(member: int) -> None:
        try:
            reports[member] = consume(store, settings, stop=stop, say=said[member].append)
        except BaseException as error:
            errors.append(error)

    def until(done: Any) -> None:
        deadline = time.monotonic() + 60
        while not done() and not errors and time.monotonic() < deadline:
            time.sleep(0.02)
        assert done() and not errors, (said, errors)

    first, second = (threading.Thread(target=read, args=(member,)) for member in (0, 1))
    first.start()
    try:
        until(lambda: store.head() == 20)
        second.start()
        until(lambda: "reading shared, partitions 2, 3" in said[0] + said[1] and "partitions 0, 1" in str(said))
        send(producer, "shared", *(event(f"b{n}") for n in range(20)))
        until(lambda: store.head() == 40)
    finally:
        stop.set()
        first.join()
        if second.ident:
            second.join()
    assert ids(store) == {f"{batch}{n}" for batch in "ab" for n in range(20)}
    assert sum(report.added for report in reports.values()) == 40
    assert min(report.added for report in reports.values()) > 0
    assert positions(store, "shared", "g") == dict.fromkeys(range(4), 10)


def test_a_failure_while_partitions_are_assigned_ends_it(
    producer: Any, brokers: str, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(confluent_kafka.Consumer):
        def committed(self, *_: Any, **__: Any) -> Any:
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT))

    send(producer, "deaf", event("i1"))
    monkeypatch.setattr("confluent_kafka.Consumer", Deaf)
    with pytest.raises(StreamError, match="expected the brokers to answer"):
        consume(store, StreamSettings(brokers, "deaf", "g", FAST, tries=2, wait_seconds=0.01), until_end=True)
    assert store.head() == 0


def test_what_the_brokers_refuse_ends_it_at_once_and_shows_no_secret(
    brokers: str, store: FeedbackStore, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "PLAIN", "sasl.username": "u"}
    settings = StreamSettings(brokers, "t", "g", {**options, "sasl.password": "hunter2"}, answer_seconds=0.5)
    said: list[str] = []
    with pytest.raises(InputError, match="the right to read 't' as group 'g', found _AUTHENTICATION") as caught:
        consume(store, settings, say=said.append)
    assert "hunter2" not in "".join([str(caught.value), *said, *capfd.readouterr()])


def test_brokers_that_are_away_are_named_once_and_not_by_the_second(
    store: FeedbackStore, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    settings = StreamSettings("127.0.0.1:1", "t", "g", tries=2, answer_seconds=0.3, wait_seconds=0.01)
    with pytest.raises(StreamError, match="expected the brokers to answer"):
        consume(store, settings, say=said.append)
    assert any("try 2 of 2" in line for line in said)
    assert len(said) <= 3
    assert capfd.readouterr() == ("", "")


def test_what_librdkafka_does_not_know_is_said_without_the_value(brokers: str, store: FeedbackStore) -> None:
    settings = StreamSettings(brokers, "t", "g", {"sasl.pasword": "hunter2"})
    with pytest.raises(InputError, match=r'No such configuration property: "sasl.pasword"') as caught:
        consume(store, settings)
    assert "hunter2" not in str(caught.value)
