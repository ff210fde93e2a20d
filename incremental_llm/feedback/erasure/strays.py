"""Messages and lines that became no event: no index says whose they are, so they are read.

What a field says exactly is his. A name in the middle of a text is his where it is long enough to be no other word; a
shorter one is for a person to look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.erasure.needles import SHORTEST_NAME
from incremental_llm.feedback.erasure.reasons import without_quotes
from incremental_llm.feedback.erasure.rules import Erased

_PERSON = ("user", "reviewer")


def erase_parked(connection: sa.Connection, erased: Erased) -> int:
    """A message that is his keeps its place and loses its bytes."""
    table, count = tables.parked_messages, 0
    for row in _parked(connection):
        if _is_his(row, erased):
            blank = {"message_key": None, "value": None, "reason": without_quotes(row.reason)}
            digest = erased.pseudonyms.of(row.digest)
            connection.execute(sa.update(table).where(_here(row)).values(**blank, digest=digest))
            count += 1
    return count


def erase_refused(connection: sa.Connection, erased: Erased) -> int:
    """Reasons quote lines that became no event, whose they are is not known: no reason keeps what it quotes.

    A source whose file is called after the person is forgotten: imported again, it adds nothing.
    """
    lines, marks, count = tables.refused_lines, tables.marks, 0
    for source in connection.scalars(sa.select(marks.c.source).union(sa.select(lines.c.source))).all():
        stem = PurePath(source).stem
        if stem == erased.person or erased.needles.named(stem.encode("utf-8", "surrogateescape")):
            for table in (lines, marks):
                count += connection.execute(sa.delete(table).where(table.c.source == source)).rowcount
    rows = connection.execute(sa.select(lines.c.source, lines.c.line, lines.c.reason)).all()
    for row in rows:
        if (short := without_quotes(row.reason)) != row.reason:
            here = sa.and_(lines.c.source == row.source, lines.c.line == row.line)
            connection.execute(sa.update(lines).where(here).values(reason=short))
            count += 1
    return count


def mentioned(connection: sa.Connection, erased: Erased) -> bool:
    """Whether a parked message is the person's, or a reason of a refused line quotes the name."""
    if any(_is_his(row, erased) for row in _parked(connection)):
        return True
    quoted = (repr(erased.person), json.dumps(erased.person), json.dumps(erased.person, ensure_ascii=False))
    reasons = connection.scalars(sa.select(tables.refused_lines.c.reason))
    return any(any(one in reason for one in quoted) or erased.needles.named(reason.encode()) for reason in reasons)


def doubtful(connection: sa.Connection, erased: Erased) -> Iterator[str]:
    """Parked messages in which the name is a word and which are not surely his: for a person to look at."""
    for row in _parked(connection):
        said = (row.message_key or b"", row.value or b"")
        if any(map(erased.needles.in_bytes, said)) and not _is_his(row, erased):
            yield f"parked message {row.topic}/{row.partition}/{row.offset_number}"


def _parked(connection: sa.Connection) -> Iterator[Any]:
    """Those with bytes, one in memory at a time."""
    table = tables.parked_messages
    keys = list(table.primary_key.columns)
    held = table.c.value.is_not(None) | table.c.message_key.is_not(None)
    for place in connection.execute(sa.select(*keys).where(held).order_by(*keys)).all():
        yield connection.execute(sa.select(table).where(_here(place))).one()


def _here(row: Any) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == row._mapping[column.name] for column in tables.parked_messages.primary_key))


def _is_his(row: Any, erased: Erased) -> bool:
    key, value, reason = row.message_key or b"", row.value or b"", row.reason.encode()
    if key == erased.person.encode("utf-8", "surrogatepass") or any(map(erased.needles.his, (key, value, reason))):
        return True
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return erased.needles.named(value) or _field(erased.person).search(value) is not None
    return any(map(erased.is_named_by, _objects(parsed))) or (
        len(erased.person) >= SHORTEST_NAME and erased.person in _strings(parsed)
    )


def _field(person: str) -> re.Pattern[bytes]:
    """A field of a broken JSON object that holds the name and nothing else."""
    ways = "|".join({re.escape(json.dumps(person)), re.escape(json.dumps(person, ensure_ascii=False))})
    return re.compile(rf'"(?:{"|".join(_PERSON)})"\s*:\s*(?:{ways})'.encode("utf-8", "surrogatepass"))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inner)
