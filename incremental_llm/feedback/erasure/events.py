"""The rules of the tables that hold events; `strays` has what the ways in leave beside them."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.erasure.rules import Erased, TableRule
from incremental_llm.feedback.erasure.strays import erase_parked, erase_refused
from incremental_llm.feedback.pseudonyms import ERASED
from incremental_llm.feedback.sequence import chunks


def _erase_events(connection: sa.Connection, erased: Erased) -> int:
    """A tombstone for each event: its place stays, so that no cursor and no number of another event moves.

    One that waited gets a place too: it waits for nothing any more.
    """
    events, links, waits = tables.events, tables.links, tables.waits
    seq, _ = tables.last_numbers(connection)
    count = 0
    for names in chunks(sorted(erased.events)):
        columns = (events.c.id, events.c.seq, events.c.type, events.c.digest)
        rows = connection.execute(sa.select(*columns).where(events.c.id.in_(names))).all()
        stones = []
        for row in rows:
            seq += row.seq is None
            stones.append(_tombstone(row, row.seq if row.seq is not None else seq, erased))
        if stones:
            old = sa.update(events).where(events.c.id == sa.bindparam("old"))
            columns_now = ("id", "seq", "type", "digest", "body")
            connection.execute(old.values({name: sa.bindparam(f"new_{name}") for name in columns_now}), stones)
        connection.execute(sa.delete(links).where(links.c.event_id.in_(names)))
        connection.execute(sa.delete(links).where(links.c.kind == "event", links.c.target.in_(names)))
        waiting = sa.or_(waits.c.event_id.in_(names), waits.c.interaction_id.in_(names))
        connection.execute(sa.delete(waits).where(waiting))
        count += len(stones)
    connection.execute(sa.update(tables.counters).where(tables.counters.c.name == "seq").values(value=seq))
    return count + _rename_in_changes(connection, erased)


def _tombstone(row: Any, seq: int, erased: Erased) -> dict[str, Any]:
    name = erased.pseudonyms.of(row.id)
    body = {"type": ERASED, "id": name, "was": row.type, "erasure": erased.erasure}
    return {
        "old": row.id,
        "new_id": name,
        "new_seq": seq,
        "new_type": ERASED,
        # Of a short text a plain digest tells what it was to whoever tries texts on it.
        "new_digest": erased.pseudonyms.of(row.digest),
        "new_body": json.dumps(body, separators=(",", ":")),
    }


def _rename_in_changes(connection: sa.Connection, erased: Erased) -> int:
    """Policy changes of others still end what they ended; of what they name, erased events have their pseudonyms."""
    events, count = tables.events, 0
    for names in chunks(sorted(erased.naming)):
        for row in connection.execute(sa.select(events.c.id, events.c.body).where(events.c.id.in_(names))).all():
            body = json.loads(row.body)
            named = [erased.pseudonyms.of(one) if one in erased.events else one for one in body["supersedes"]]
            if named == body["supersedes"]:
                continue
            left = body | {"supersedes": named}
            text = json.dumps(left, separators=(",", ":"))
            connection.execute(sa.update(events).where(events.c.id == row.id).values(body=text))
            connection.execute(sa.delete(tables.links).where(tables.links.c.event_id == row.id))
            tables.insert(connection, tables.links, [(*link, row.id) for link in tables.links_of(left)])
            count += 1
    return count


def _note_person(connection: sa.Connection, erased: Erased) -> int:
    """Under a pseudonym, so that a message of theirs that is no event is parked without its bytes."""
    name, table = erased.pseudonyms.of(erased.person), tables.erased_people
    if connection.execute(sa.select(table).where(table.c.name == name)).first() is None:
        connection.execute(sa.insert(table).values(name=name))
    return 0


def _nothing(connection: sa.Connection, erased: Erased) -> int:
    """Numbers, times, topics and keys."""
    return 0


RULES = (
    TableRule((tables.erased_people.name,), _note_person),
    TableRule((tables.events.name, tables.links.name, tables.waits.name), _erase_events),
    TableRule((tables.parked_messages.name,), erase_parked),
    TableRule((tables.refused_lines.name, tables.marks.name), erase_refused),
    TableRule(
        (tables.counters.name, tables.arrivals.name, tables.stream_positions.name, tables.erasure_keys.name), _nothing
    ),
)
