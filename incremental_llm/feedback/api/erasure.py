"""How the API's own tables let go of a person."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import sqlalchemy as sa

from incremental_llm.feedback.api import tables
from incremental_llm.feedback.erasure.rules import Erased, TableRule
from incremental_llm.feedback.sequence import chunks


def _erase_answers(connection: sa.Connection, erased: Erased) -> int:
    """Answers that name one of his events, or quote anybody: the request that comes again is then judged anew.

    Its events are known, as duplicates or as erased ones, and nothing is stored twice.
    """
    table = tables.answers
    told = [
        row.id
        for row in connection.execute(sa.select(table.c.id, table.c.outcomes))
        if any(name in erased.events or reason for name, _, reason in json.loads(row.outcomes))
    ]
    for names in chunks(told):
        connection.execute(sa.delete(table).where(table.c.id.in_(names)))
    return len(told)


def _erase_keys(connection: sa.Connection, erased: Erased) -> int:
    """A key that was made for the person ends, and keeps no name."""
    table, now = tables.keys, datetime.now(UTC).isoformat(timespec="seconds")
    name = erased.pseudonyms.of(erased.person)
    count = 0
    for column in (table.c.name, table.c.reviewer):
        his = sa.update(table).where(column == erased.person)
        ended = sa.func.coalesce(table.c.revoked, now)
        count += connection.execute(his.values({column: name, table.c.revoked: ended})).rowcount
    return count


def _nothing(connection: sa.Connection, erased: Erased) -> int:
    """Secrets of the server, and random ids of sessions."""
    return 0


RULES = (
    TableRule((tables.answers.name,), _erase_answers),
    TableRule((tables.keys.name,), _erase_keys),
    TableRule((tables.signing_secrets.name, tables.ended_sessions.name), _nothing),
)
