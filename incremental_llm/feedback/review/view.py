"""The queue as one reviewer sees it: a seeded item is in the state that any other would be in after what this one did.

Without a reviewer it is as somebody sees it who has decided nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, get_args

import sqlalchemy as sa

from incremental_llm.feedback.review import tables
from incremental_llm.feedback.review.items import Item, Kind, State
from incremental_llm.feedback.review.rows import read_proposal
from incremental_llm.feedback.sequence import chunks

_I, _A, _C, _D = tables.items.c, tables.authors.c, tables.claims.c, tables.decisions.c


class View:
    """What `reviewer` sees at `now`, in seconds since 1970; of the kinds in `two_person` two have to decide."""

    def __init__(self, reviewer: str | None, now: float, two_person: Collection[Kind]) -> None:
        self._reviewer, self._two_person = reviewer, two_person
        held = sa.exists().where(_C.item == _I.id, _C.expires > now)
        seed_held = held if reviewer is None else held.where(_C.reviewer == reviewer)
        self._holders = sa.select(_C.item, _C.reviewer).where(_C.expires > now)
        opinions = sa.select(sa.func.count()).where(_D.item == _I.id, _D.verdict != "skip").scalar_subquery()
        mine = sa.exists().where(_D.item == _I.id, _D.verdict != "skip", _D.reviewer == (reviewer or ""))
        enough = _I.kind.not_in(two_person) | (opinions > 1)
        self.state: sa.Case[str] = sa.case(
            (_I.seeded & mine & enough, "done"),
            (_I.seeded & mine, "waiting"),
            (_I.seeded & seed_held, "claimed"),
            (_I.seeded, "open"),
            (_I.state == "done", "done"),
            (held, "claimed"),
            else_=_I.state,
        )

    def counts(self, connection: sa.Connection, *, seeds: bool) -> dict[State, int]:
        """How many items are in each state; without `seeds` those that something is learnt from."""
        now = self.state.label("now")
        wanted = sa.select(now, sa.func.count().label("many")).group_by(now)
        found = {row.now: row.many for row in connection.execute(wanted if seeds else wanted.where(~_I.seeded))}
        return {state: found.get(state, 0) for state in get_args(State)}

    def select(self) -> sa.Select[Any]:
        """The rows that `items` reads."""
        return sa.select(tables.items, self.state.label("seen"))

    def items(self, connection: sa.Connection, rows: Sequence[Any]) -> list[Item]:
        """The items of rows of `select`."""
        held: dict[str, set[str]] = {row.id: set() for row in rows}
        decided: dict[str, int] = {}
        for ids in chunks(held):
            for row in connection.execute(self._holders.where(_C.item.in_(ids))):
                held[row.item].add(row.reviewer)
            count = sa.select(_D.item, sa.func.count().label("many")).where(_D.item.in_(ids), _D.verdict != "skip")
            decided |= {row.item: row.many for row in connection.execute(count.group_by(_D.item))}
        return [
            Item(
                id=row.id,
                proposal=read_proposal(row),
                state=row.seen,
                created=datetime.fromisoformat(row.created),
                claimed_by=self._holder(held[row.id]) if row.seen == "claimed" else None,
                decided=self._decided(row, decided.get(row.id, 0)),
            )
            for row in rows
        ]

    def _holder(self, holders: Collection[str]) -> str:
        """A seeded item has several; the reviewer sees the own one."""
        return self._reviewer if self._reviewer in holders and self._reviewer is not None else min(holders)

    def _decided(self, row: Any, many: int) -> int:
        """An open item with many decisions would be a seeded one, and so would one with more than it needs."""
        if not row.seeded:
            return many
        return {"open": 0, "claimed": 0, "waiting": 1}.get(row.seen, 2 if row.kind in self._two_person else 1)


def open_to(reviewer: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Items that are not decided, neither by this reviewer, nor about what this reviewer has said."""
    said = sa.exists().where(_A.item == _I.id, _A.person == reviewer)
    decided = sa.exists().where(_D.item == _I.id, _D.reviewer == reviewer)
    return _I.state.in_(("open", "waiting")), ~said, ~decided
