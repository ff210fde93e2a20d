"""A batch of a stream, and what it leaves beside its events: messages that are none, and how far it was read.

All of it is written in the one transaction that stores the events.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.erasure.reasons import without_quotes
from incremental_llm.feedback.events import Event, EventError, read_event
from incremental_llm.feedback.pseudonyms import read_pseudonyms
from incremental_llm.feedback.sequence import Refused
from incremental_llm.feedback.store import FeedbackStore
from incremental_llm.feedback.stream_settings import StreamSettings

if TYPE_CHECKING:
    from confluent_kafka import Message

_NAMED = re.compile(
    r'"(?:id|user|reviewer|interaction|chosen|rejected|followup)"\s*:\s*'
    r'("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")'
)
"""Whom and what a message names, also where it is no whole JSON."""

KEPT_BYTES = 1024 * 1024
"""How much of a message is kept; a broker with Kafka's own limits takes no larger ones."""


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """A message that did not become an event, where it stood, and why.

    `value` holds its first KEPT_BYTES bytes, None where it had no value; `size` and `digest` (sha256) are of all of it.
    `time_ms` is the broker's, in milliseconds since 1970; None where it has none.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int | None
    reason: str
    key: bytes | None
    value: bytes | None
    size: int
    digest: str

    @classmethod
    def of(cls, message: Message, reason: str, *, kept: bool = True) -> ParkedMessage:
        """A message as Kafka delivered it, and what is wrong with it.

        Of one that is not `kept` there is only where it stood.
        """
        kind, time = message.timestamp()
        value = message.value() if kept else None
        whole = value or b""
        return cls(
            str(message.topic()),
            *place_of(message),
            time_ms=time if kind else None,
            reason=reason,
            key=message.key() if kept else None,
            value=None if value is None else value[:KEPT_BYTES],
            size=len(whole),
            digest=hashlib.sha256(whole).hexdigest(),
        )

    @property
    def time(self) -> datetime | None:
        """When it was produced, or reached the broker, as the topic is set up."""
        return None if self.time_ms is None else datetime.fromtimestamp(self.time_ms / 1000, UTC)


class Batch:
    """Messages on their way into one transaction; saving it twice writes the same."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self.sources: list[Message] = []
        self.parked: list[ParkedMessage] = []
        self.next: dict[int, int] = {}

    def add(self, message: Message) -> None:
        """An event, or a message to park."""
        partition, offset = place_of(message)
        self.next[partition] = offset + 1
        try:
            self.events.append(self._event(message.value()))
            self.sources.append(message)
        except EventError as error:
            self.parked.append(ParkedMessage.of(message, str(error)))

    def save(self, connection: sa.Connection, refused: Sequence[Refused]) -> None:
        """Write what the database keeps beside the events; those that it refused are parked too."""
        unlike = [ParkedMessage.of(self.sources[one.position], one.reason, kept=not one.erased) for one in refused]
        parked = [_kept(connection, one) for one in (*self.parked, *unlike)]
        _save(connection, self.settings.topic, self.settings.group, self.next, parked)

    def _event(self, value: bytes | None) -> Event:
        if value is None:
            raise EventError("expected a JSON object, found a message without a value (a tombstone)")
        if len(value) > self.settings.max_message_bytes:
            raise EventError(f"expected at most {self.settings.max_message_bytes} bytes, found {len(value)}")
        return read_event(value)


def _kept(connection: sa.Connection, one: ParkedMessage) -> ParkedMessage:
    """The message, but for its bytes if it names who or what was erased, or was erased itself where it was parked."""
    pseudonyms = read_pseudonyms(connection)
    if pseudonyms is None or one.value is None:
        return one
    named = {json.loads(text) for text in _NAMED.findall(one.value.decode("utf-8", "replace"))}
    names = [pseudonyms.of(name) for name in named]
    digest = pseudonyms.of(one.digest)
    wanted = (
        sa.select(tables.events.c.id).where(tables.events.c.id.in_(names)),
        sa.select(tables.erased_people.c.name).where(tables.erased_people.c.name.in_(names)),
        sa.select(tables.parked_messages.c.digest).where(tables.parked_messages.c.digest == digest),
    )
    if all(connection.execute(query.limit(1)).first() is None for query in wanted):
        return one
    return replace(one, key=None, value=None, digest=digest, reason=without_quotes(one.reason))


def _save(
    connection: sa.Connection, topic: str, group: str, positions: Mapping[int, int], parked: Sequence[ParkedMessage]
) -> None:
    """Write, with a batch of events, the messages parked and the next offset of each partition.

    A message that was parked before keeps one row.
    """
    if parked:
        # A rebalance may bring a message twice in one batch.
        rows = list({(one.topic, one.partition, one.offset, one.digest): _row(one) for one in parked}.values())
        again = sa.delete(tables.parked_messages)
        for column in tables.parked_messages.primary_key:
            again = again.where(column == sa.bindparam(f"at_{column.name}"))
        connection.execute(again, [{f"at_{name}": value for name, value in row.items()} for row in rows])
        connection.execute(sa.insert(tables.parked_messages), rows)
    place = tables.stream_positions.c
    here = (place.topic == topic, place.consumer_group == group, place.partition.in_(list(positions)))
    connection.execute(sa.delete(tables.stream_positions).where(*here))
    where = {"topic": topic, "consumer_group": group}
    new = [{**where, "partition": number, "next_offset": offset} for number, offset in positions.items()]
    connection.execute(sa.insert(tables.stream_positions), new)


def place_of(message: Message) -> tuple[int, int]:
    """Partition and offset of a message, which only an error may lack."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None
    return partition, offset


def positions(store: FeedbackStore, topic: str, group: str) -> dict[int, int]:
    """The next offset to read of each partition, as the store has it."""
    place = tables.stream_positions.c
    wanted = sa.select(place.partition, place.next_offset).where(place.topic == topic, place.consumer_group == group)
    with store.reading() as connection:
        return {row.partition: row.next_offset for row in connection.execute(wanted)}


def parked_count(store: FeedbackStore, topic: str | None = None) -> int:
    """How many messages are parked, of one topic or of all."""
    wanted = sa.select(sa.func.count()).select_from(tables.parked_messages)
    with store.reading() as connection:
        return int(connection.execute(_of_topic(wanted, topic)).scalar_one())


def parked(store: FeedbackStore, topic: str | None = None, limit: int | None = None) -> list[ParkedMessage]:
    """The parked messages, of one topic or of all, by topic, partition and offset; at most `limit`."""
    table = tables.parked_messages.c
    wanted = sa.select(tables.parked_messages).order_by(table.topic, table.partition, table.offset_number).limit(limit)
    with store.reading() as connection:
        return [
            ParkedMessage(
                topic=row.topic,
                partition=row.partition,
                offset=row.offset_number,
                time_ms=row.time_ms,
                reason=row.reason,
                key=row.message_key,
                value=row.value,
                size=row.size,
                digest=row.digest,
            )
            for row in connection.execute(_of_topic(wanted, topic))
        ]


def _of_topic(wanted: sa.Select[Any], topic: str | None) -> sa.Select[Any]:
    return wanted if topic is None else wanted.where(tables.parked_messages.c.topic == topic)


def _row(one: ParkedMessage) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "partition": one.partition,
        "offset_number": one.offset,
        "digest": one.digest,
        "time_ms": one.time_ms,
        "reason": one.reason,
        "message_key": one.key,
        "value": one.value,
        "size": one.size,
    }
