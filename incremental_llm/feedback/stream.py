"""Events from a Kafka topic, one JSON object a message: delivered at least once, stored exactly once.

    settings = StreamSettings(brokers="localhost:9092", topic="feedback", group="incremental_llm")
    with FeedbackStore(url) as store:
        consume(store, settings, until_end=True)

A batch is one transaction of the database: its events, the messages that are none (parked, with their bytes and the
reason), and the next offset of each partition. Only then are the offsets committed to the brokers. Whatever fails in
between is delivered again, and ids and places make it duplicates.

**Where reading begins.** Reading twice is harmless here and skipping is not. So a partition begins at the lower of the
two offsets, the brokers' and the database's, and at the earliest message where one of them is missing. That is what the
database keeps its own offsets for: a database that was restored from a copy, or is a new one, gets what the group has
been past already; and messages that the brokers deleted before they were read are noticed. The higher of the two would
save reading some duplicates after the brokers forgot a group, and lose the beginning of a topic that was made anew.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from incremental_llm.errors import InputError, StreamError
from incremental_llm.feedback.parking import Batch, place_of, positions
from incremental_llm.feedback.store import FeedbackStore
from incremental_llm.feedback.stream_settings import StreamSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

T = TypeVar("T")

# librdkafka's own lines, for whoever listens: several a second while a broker is away, and `say` gets what they mean.
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

_LONGEST_WAIT = 30.0
_DENIED = (
    "_AUTHENTICATION",
    "SASL_AUTHENTICATION_FAILED",
    "UNSUPPORTED_SASL_MECHANISM",
    "TOPIC_AUTHORIZATION_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
)


@dataclass(frozen=True, slots=True)
class ConsumeReport:
    """What one consumer did so far.

    Of `messages` read, `added` became new events, `duplicates` were stored already, and `parked` are no events. `lag`
    counts the messages that its partitions hold beyond what was read; None while unknown. `waiting` is how many events
    the store holds that wait for their interaction. `deleted` counts messages that the brokers deleted before they were
    read.
    """

    messages: int = 0
    added: int = 0
    duplicates: int = 0
    parked: int = 0
    waiting: int = 0
    deleted: int = 0
    lag: int | None = None


def consume(
    store: FeedbackStore,
    settings: StreamSettings,
    *,
    until_end: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[ConsumeReport], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
) -> ConsumeReport:
    """Store what the topic brings until `stop` is set, or with `until_end` until every partition was read to its end.

    `stop` is looked at between batches. `progress` is called after each; `say` gets what an operator should know:
    rebalances, brokers that do not answer, messages that are gone. librdkafka reconnects by itself, for ever.

    Raises:
        InputError: confluent-kafka is missing, a wrong option, no such topic, or no right to read it.
        StreamError: brokers or database fail for longer than `tries`, or fatally. Nothing is skipped.
    """
    return _Reader(store, settings, stop or threading.Event(), say).run(until_end, progress)


def first_offset(stored: int | None, committed: int | None, low: int, high: int) -> int:
    """Where a partition that holds offsets low to high - 1 begins, by the database and the brokers."""
    if stored is None or committed is None or min(stored, committed) > high:
        return low
    return max(low, min(stored, committed))


class _Reader:
    """One member of the group: its partitions, and what of them is stored but not committed to the brokers yet."""

    def __init__(
        self, store: FeedbackStore, settings: StreamSettings, stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        self.store, self.settings, self.stop, self.say = store, settings, stop, say
        self.assigned: set[int] | None = None  # None until the group has said, and while it changes
        self.ended: set[int] = set()
        self.uncommitted: dict[int, int] = {}
        self.next: dict[int, int] = {}
        self.messages = self.added = self.duplicates = self.parked = self.waiting = self.deleted = 0
        self.troubles: set[int] = set()  # said already, since the last batch
        self.consumer = self._connected()

    def run(self, until_end: bool, progress: Callable[[ConsumeReport], None]) -> ConsumeReport:
        from confluent_kafka import KafkaException

        settings = self.settings
        try:
            self._check_topic()
            self.consumer.subscribe(
                [settings.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self.stop.is_set() and not (until_end and self._at_end()):
                self._take(self.consumer.consume(settings.batch_messages, timeout=settings.batch_seconds))
                progress(self.report())
            self._commit()
        except KafkaException as error:
            self._raise_lasting(error.args[0])
            raise self._failed("the brokers", error) from error
        finally:
            report = self.report()
            self.consumer.close()
        return report

    def report(self) -> ConsumeReport:
        """What was done so far."""
        return ConsumeReport(
            messages=self.messages,
            added=self.added,
            duplicates=self.duplicates,
            parked=self.parked,
            waiting=self.waiting,
            deleted=self.deleted,
            lag=self._lag(),
        )

    def _connected(self) -> Consumer:
        try:
            from confluent_kafka import Consumer, KafkaException
        except ImportError as error:
            raise InputError(
                f"stream: expected the package confluent-kafka, found none ({error}). "
                "Install the extra: pip install 'incremental_llm[kafka]'."
            ) from error
        try:
            return Consumer({**self.settings.client(), "error_cb": self._on_error, "logger": _log})
        except KafkaException as error:
            found = self.settings.without_secrets(error.args[0].str())
            raise InputError(f"stream: expected options that librdkafka knows, found: {found}.") from error

    def _check_topic(self) -> None:
        from confluent_kafka import KafkaException

        def names() -> Sequence[str]:
            try:
                return list(self.consumer.list_topics(timeout=self.settings.answer_seconds).topics)
            except KafkaException:
                self.consumer.poll(0)  # raises what is behind it, such as a wrong password
                raise

        topic, found = self.settings.topic, self._retried(names)
        if topic not in found:
            near = difflib.get_close_matches(topic, found, n=3)
            raise InputError(
                f"stream: expected the topic {topic!r} at {self.settings.brokers}, found "
                f"{', '.join(map(repr, near)) or 'none of a like name'}. Create it, or let this user read it."
            )

    def _at_end(self) -> bool:
        return self.assigned is not None and self.assigned <= self.ended

    def _take(self, messages: Sequence[Message]) -> None:
        """Store what was read, then commit; messages of partitions that went away meanwhile are someone else's."""
        from confluent_kafka import KafkaError

        batch = Batch(self.settings)
        for message in messages:
            error, mine = message.error(), self.assigned is not None and message.partition() in self.assigned
            if error is None and mine:
                batch.add(message)
            elif error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._on_error(error)
            elif error is not None and mine:
                self.ended.add(place_of(message)[0])
        if batch.next:
            report = self._retried(lambda: self.store.append(batch.events, also=batch.save))
            self.troubles.clear()
            self.messages += len(batch.events) + len(batch.parked)
            self.added += report.added
            self.duplicates += report.duplicates
            self.parked += len(batch.parked) + len(report.refused)
            self.waiting = report.waiting
            self.next |= batch.next
            self.uncommitted |= batch.next
        self._commit()

    def _commit(self) -> None:
        """Tell the brokers what is stored. Where they do not take it, it stays here, and harms nothing."""
        from confluent_kafka import KafkaException, TopicPartition

        if not self.uncommitted:
            return
        offsets = [TopicPartition(self.settings.topic, number, offset) for number, offset in self.uncommitted.items()]
        try:
            done = self.consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            self._on_error(error.args[0])
            return
        for place in done:
            if place.error is not None:
                self._on_error(place.error)
            else:
                self.uncommitted.pop(place.partition, None)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = sorted(place.partition for place in partitions)
        places = self._retried(lambda: self._beginnings(partitions)) if partitions else []
        self.assigned, self.ended, self.uncommitted = set(numbers), set(), {}
        self.next = {place.partition: place.offset for place in places}
        consumer.assign(places)
        self.say(f"reading {self.settings.topic}, partitions {', '.join(map(str, numbers)) or 'none'}")

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit()
        self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.assigned, self.uncommitted, self.next = None, {}, {}

    def _beginnings(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        from confluent_kafka import KafkaError, KafkaException, TopicPartition

        settings, wait = self.settings, self.settings.answer_seconds
        stored = positions(self.store, settings.topic, settings.group)
        places, lines, deleted = [], [], 0
        for place in self.consumer.committed(partitions, timeout=wait):
            if place.error is not None:
                raise KafkaException(place.error)
            marks = self.consumer.get_watermark_offsets(place, timeout=wait)
            if marks is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            known, committed = stored.get(place.partition), place.offset if place.offset >= 0 else None
            begin = first_offset(known, committed, *marks)
            places.append(TopicPartition(settings.topic, place.partition, begin))
            if known is not None and (gone := marks[0] - known) > 0:
                deleted += gone
                lines.append(
                    f"{settings.topic}, partition {place.partition}: {gone} messages from offset {known} on were "
                    "deleted at the brokers before they were read: raise the topic's retention, or read more often"
                )
        for line in lines:
            self.say(line)
        self.deleted += deleted
        return places

    def _lag(self) -> int | None:
        if self.assigned is None:
            return None
        from confluent_kafka import TopicPartition

        total = 0
        for number in self.assigned:
            marks = self.consumer.get_watermark_offsets(TopicPartition(self.settings.topic, number), cached=True)
            if marks is None or marks[1] < 0:
                return None
            total += max(0, marks[1] - self.next[number])
        return total

    def _on_error(self, error: KafkaError) -> None:
        """Say what passes by itself, once until it has passed; raise what does not."""
        self._raise_lasting(error)
        if error.code() not in self.troubles:
            self.troubles.add(error.code())
            self.say(f"the brokers: {error.name()}: {self.settings.without_secrets(error.str())}; going on")

    def _raise_lasting(self, error: KafkaError) -> None:
        from confluent_kafka import KafkaError

        text = self.settings.without_secrets(error.str())
        if error.code() in [getattr(KafkaError, name) for name in _DENIED]:
            raise InputError(
                f"stream: expected the right to read {self.settings.topic!r} as group {self.settings.group!r}, found "
                f"{error.name()}: {text}. Check the user, its password and its rights; nothing was skipped."
            )
        if error.fatal():
            raise StreamError(f"stream: the consumer cannot go on ({error.name()}: {text}). Start it again.")

    def _retried(self, do: Callable[[], T]) -> T:
        from confluent_kafka import KafkaException

        for attempt in itertools.count(1):
            try:
                return do()
            except (sa.exc.DBAPIError, sa.exc.TimeoutError, KafkaException) as error:
                who = "the brokers" if isinstance(error, KafkaException) else "the database"
                if isinstance(error, KafkaException):
                    self._raise_lasting(error.args[0])
                if attempt >= self.settings.tries or self.stop.is_set():
                    raise self._failed(who, error) from error
                wait = min(_LONGEST_WAIT, self.settings.wait_seconds * 2 ** (attempt - 1))
                self.say(f"{who}: {self._reason(error)}; try {attempt + 1} of {self.settings.tries} in {wait:.3g} s")
                self.stop.wait(wait)
        raise AssertionError("a count without end")

    def _failed(self, who: str, error: Exception) -> StreamError:
        return StreamError(
            f"stream: expected {who} to answer, found: {self._reason(error)}. Nothing was skipped: "
            f"see that {who} can be reached, and run the same command again."
        )

    def _reason(self, error: Exception) -> str:
        """In one line, without the statement that failed: it holds what users said."""
        found = getattr(error, "orig", None) or error.args[0]
        return self.settings.without_secrets(found.str() if hasattr(found, "str") else found)
