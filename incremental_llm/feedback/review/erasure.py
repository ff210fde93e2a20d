"""How the review queue lets go of a person."""

from __future__ import annotations

import json
from collections.abc import Collection

import sqlalchemy as sa

from incremental_llm.feedback.erasure.rules import Erased, TableRule
from incremental_llm.feedback.review import tables
from incremental_llm.feedback.sequence import chunks


def _erase_items(connection: sa.Connection, erased: Erased) -> int:
    """An item that stands on his events, in which he speaks or is quoted, goes with all that was decided of it.

    His own decisions go too; what they taught are events. An item that waited for a second opinion on his first one is
    open again, and of what others wrote nothing that quotes him stays.
    """
    items, decisions = tables.items, tables.decisions
    his = [row.id for row in connection.execute(sa.select(items.c.id, items.c.body)) if _is_his(row.body, erased)]
    his += connection.scalars(sa.select(tables.authors.c.item).where(tables.authors.c.person == erased.person)).all()
    gone = list(dict.fromkeys(his))
    _delete(connection, gone)
    count = len(gone)
    for table in (tables.claims, decisions):
        count += connection.execute(sa.delete(table).where(table.c.reviewer == erased.person)).rowcount
    undecided = items.c.id.not_in(sa.select(decisions.c.item))
    connection.execute(sa.update(items).where(items.c.state == "waiting", undecided).values(state="open"))
    written = sa.select(decisions.c.item, decisions.c.reviewer, decisions.c.content)
    for row in connection.execute(written.where(decisions.c.content.is_not(None))).all():
        if erased.needles.his(row.content.encode()):
            here = sa.and_(decisions.c.item == row.item, decisions.c.reviewer == row.reviewer)
            connection.execute(sa.update(decisions).where(here).values(content=None))
            count += 1
    return count


def _is_his(body: str, erased: Erased) -> bool:
    item = json.loads(body)
    stands_on = (*item["sources"], item["interaction"], item["other_interaction"])
    people = (*item["authors"], *(voice["who"] for voice in item["voices"]))
    return (
        any(name in erased.events for name in stands_on) or erased.person in people or erased.needles.his(body.encode())
    )


def _delete(connection: sa.Connection, gone: Collection[str]) -> None:
    for names in chunks(gone):
        connection.execute(sa.delete(tables.items).where(tables.items.c.id.in_(names)))
        for table in (tables.authors, tables.claims, tables.decisions):
            connection.execute(sa.delete(table).where(table.c.item.in_(names)))


RULES = (TableRule(tuple(tables.metadata.tables), _erase_items),)
