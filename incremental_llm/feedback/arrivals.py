"""When the store got an event, by its own clock: the time in an event is whatever its sender says.

A row says that the events after a place came from a time on. It is written with the first transaction of every minute
that stores anything, so every event is known to the minute, at one small row a minute.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.sequence import chunks

RESOLUTION = timedelta(seconds=60)

_LAST = sa.select(tables.arrivals.c.time_ms).order_by(tables.arrivals.c.after_seq.desc()).limit(1)


def note(connection: sa.Connection, before: int, now: datetime | None = None) -> None:
    """Note, within the transaction that stores them, that the events after `before` come now.

    The first row of a store stands for all that it holds: what came before there were rows came now at the latest.
    """
    time_ms = _ms(now or datetime.now(UTC))
    last = connection.execute(_LAST).scalar()
    if last is None or abs(time_ms - last) >= _ms_of(RESOLUTION):  # a clock that was set back starts a row too
        row = {"after_seq": 0 if last is None else before, "time_ms": time_ms}
        connection.execute(sa.insert(tables.arrivals), [row])


def last_seq_at(connection: sa.Connection, time: datetime) -> int:
    """The last event that the store surely had at `time`; 0 where it surely had none."""
    after, time_ms = tables.arrivals.c.after_seq, tables.arrivals.c.time_ms
    ended = sa.select(sa.func.max(after)).where(time_ms <= _ms(time - RESOLUTION))
    begun = connection.execute(ended).scalar_one()
    if begun is None:
        return 0
    following = connection.execute(sa.select(sa.func.min(after)).where(after > begun)).scalar_one()
    return tables.counter(connection, "seq") if following is None else int(following)


def arrived_at(connection: sa.Connection, seq: int) -> datetime | None:
    """When the event at a place came, to the minute before it; None for places of which nothing is known."""
    row = sa.select(tables.arrivals.c.time_ms).where(tables.arrivals.c.after_seq < seq)
    found = connection.execute(row.order_by(tables.arrivals.c.after_seq.desc()).limit(1)).scalar()
    return None if found is None else datetime.fromtimestamp(found / 1000, UTC)


def young_accounts(connection: sa.Connection, people: Collection[str], until: int, age: timedelta) -> frozenset[str]:
    """Those of `people` whose first event came less than `age` before the one at `until`.

    Nobody is young in a log that is younger itself: it cannot tell a new account from an old one that is new here.
    """
    end, start = arrived_at(connection, until), arrived_at(connection, 1)
    if end is None or start is None or not age or end - start < age:
        return frozenset()
    mature = last_seq_at(connection, end - age)
    known: set[str] = set()
    for names in chunks(sorted(people)):
        spoke = sa.select(tables.links.c.target).join(tables.events, tables.events.c.id == tables.links.c.event_id)
        spoke = spoke.where(tables.links.c.kind == "person", tables.links.c.target.in_(names))
        known.update(connection.scalars(spoke.where(tables.events.c.seq <= mature).distinct()))
    return frozenset(people) - known


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _ms_of(length: timedelta) -> int:
    return round(length.total_seconds() * 1000)
