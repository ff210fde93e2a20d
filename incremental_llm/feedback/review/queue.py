"""The queue: items come in once, are claimed for a while, decided by one or two people, and become events."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from incremental_llm.errors import IntegrityError
from incremental_llm.feedback.review import tables
from incremental_llm.feedback.review.checks import check_item, check_reviewer, check_verdict, is_item, unknown_item
from incremental_llm.feedback.review.flags import Flagged, joined
from incremental_llm.feedback.review.items import (
    Claim,
    Decided,
    Decision,
    Item,
    NotYoursError,
    Proposal,
    State,
    Verdict,
)
from incremental_llm.feedback.review.rows import add_authors, decision_row, item_row, read_decision, read_proposal
from incremental_llm.feedback.review.settings import ReviewSettings
from incremental_llm.feedback.review.teaching import Same, settled, taught
from incremental_llm.feedback.review.view import View, open_to
from incremental_llm.feedback.sequence import CHUNK, chunks
from incremental_llm.feedback.store import FeedbackStore, append_within
from incremental_llm.feedback.tables import create_missing

_I, _A, _C, _D = tables.items.c, tables.authors.c, tables.claims.c, tables.decisions.c


class ReviewQueue:
    """The review queue in a feedback database; processes and threads may use it at the same time.

    Args:
        same: whether two replies say the same. By default only equal ones do, so that two reviewers agree too seldom
            rather than too easily; `dataset.dedup.same_statement` is what a compile goes by.
        draw: a number from 0 to 1; below `seed_share` a seeded item is next.
    """

    def __init__(
        self,
        store: FeedbackStore,
        settings: ReviewSettings | None = None,
        *,
        same: Same = operator.eq,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings or ReviewSettings()
        self.same = same
        self._store, self._now, self._draw = store, now, draw
        with store.writing() as connection:
            create_missing(connection, tables.metadata)

    def add(self, proposals: Iterable[Proposal]) -> int:
        """Put proposals in, and return how many were new. One that is there already gets further authors at most.

        A seeded item gets the time of one of the others: those of a file would share theirs.
        """
        wanted = {proposal.id: proposal for proposal in proposals}
        created = self._now().isoformat()
        with self._store.writing() as connection:
            known: set[str] = set()
            for ids in chunks(wanted):
                known.update(connection.scalars(sa.select(_I.id).where(_I.id.in_(ids))))
            times = connection.scalars(sa.select(_I.created).where(~_I.seeded)).all() or [created]
            rows = [
                item_row(
                    name, new, created if new.expected is None else times[int(self._draw() * len(times)) % len(times)]
                )
                for name, new in wanted.items()
                if name not in known
            ]
            for start in range(0, len(rows), CHUNK):
                connection.execute(sa.insert(tables.items), rows[start : start + CHUNK])
            add_authors(connection, {name: proposal.authors for name, proposal in wanted.items()})
        return len(rows)

    def flag(self, proposal: Proposal) -> Flagged:
        """Put in a moderator's verdict; one more on a reply whose item is not decided yet joins that item."""
        if self.add([proposal]):
            return "added"
        with self._store.writing() as connection:
            row = connection.execute(sa.select(tables.items).where(_I.id == proposal.id)).one()
            more = None if row.state == "done" else joined(read_proposal(row), proposal)
            if more is None:
                return "duplicate"
            changed = item_row(row.id, more, row.created) | {"state": row.state}
            connection.execute(sa.update(tables.items).where(_I.id == row.id).values(changed))
        return "joined"

    def items(
        self, *, kind: str | None = None, states: Collection[State] = (), reviewer: str | None = None, limit: int = 100
    ) -> list[Item]:
        """Items, most urgent first, at most `limit`; `reviewer`: those that this one may decide and has not."""
        view = self._view(reviewer)
        wanted = view.select().order_by(_I.priority.desc(), _I.created, _I.id).limit(limit)
        if kind is not None:
            wanted = wanted.where(_I.kind == kind)
        if states:
            wanted = wanted.where(view.state.in_(states))
        if reviewer is not None:
            wanted = wanted.where(*open_to(reviewer))
        with self._store.reading() as connection:
            return view.items(connection, connection.execute(wanted).all())

    def get(self, name: str, reviewer: str | None = None) -> Item:
        """One item, as `reviewer` sees it; raises UnknownItemError."""
        with self._store.reading() as connection:
            return self._item(connection, name, reviewer)

    def counts(self, reviewer: str | None = None, *, seeds: bool = True) -> dict[State, int]:
        """How many items are in each state as `reviewer` sees them; without `seeds` seeded ones are left out."""
        with self._store.reading() as connection:
            return self._view(reviewer).counts(connection, seeds=seeds)

    def decisions(self) -> list[Decision]:
        """Every decision, in order of time."""
        wanted = sa.select(tables.decisions).order_by(_D.time, _D.item, _D.reviewer)
        with self._store.reading() as connection:
            return [read_decision(row) for row in connection.execute(wanted)]

    def proposals(self, names: Collection[str]) -> dict[str, Proposal]:
        """What the items with these ids are about."""
        found: dict[str, Proposal] = {}
        with self._store.reading() as connection:
            for ids in chunks(names):
                rows = connection.execute(sa.select(_I.id, _I.body).where(_I.id.in_(ids)))
                found |= {row.id: read_proposal(row) for row in rows}
        return found

    def next(self, reviewer: str, *, but: Collection[str] = ()) -> Claim | None:
        """Claim what `reviewer` should decide next, leaving out the ids in `but`; None when there is nothing.

        What the reviewer holds already comes first. Seeded items are mixed in and look like the others.
        """
        check_reviewer(reviewer)
        with self._store.writing() as connection:
            now = self._now().timestamp()
            passed = list(filter(is_item, but))[-CHUNK // 2 :]
            free = sa.select(_I.id).where(*open_to(reviewer), _I.id.not_in(passed)).limit(1)
            live = sa.select(_C.item).where(_C.expires > now)
            mine, other = live.where(_C.reviewer == reviewer), live.where(_C.reviewer != reviewer)
            ordered = free.where(_I.id.not_in(other)).order_by(_I.priority.desc(), _I.created, _I.id)
            seeds = free.where(_I.seeded).order_by(_I.id)
            plain = ordered.where(~_I.seeded)
            order = [seeds, plain] if self._draw() < self.settings.seed_share else [plain]
            for wanted in (free.where(_I.id.in_(mine)), *order):
                found = connection.execute(wanted).scalar()
                if found is not None:
                    return self._claimed(connection, found, reviewer)
        return None

    def claim(self, name: str, reviewer: str) -> Claim:
        """Claim one item, or hold it for longer.

        Raises:
            ReviewError: unknown, decided, somebody else's, or about what this reviewer has said.
        """
        check_reviewer(reviewer)
        with self._store.writing() as connection:
            item = self._item(connection, name, reviewer)
            self._check_open(connection, item, reviewer)
            return self._claimed(connection, name, reviewer)

    def release(self, name: str, reviewer: str) -> None:
        """Give a claim back; nothing happens where there is none."""
        check_item(name)
        check_reviewer(reviewer)
        with self._store.writing() as connection:
            connection.execute(sa.delete(tables.claims).where(_C.item == name, _C.reviewer == reviewer))

    def decide(self, name: str, reviewer: str, verdict: Verdict, content: str | None = None) -> Decided:
        """Record the decision of whoever holds the item, and in the same transaction the events that it completes.

        A decision that is repeated word for word is answered again; nothing else takes one back.

        Raises:
            ReviewError: no live claim by this reviewer, another decision of theirs, or a text that does not fit.
        """
        check_reviewer(reviewer)
        check_verdict(verdict, content)
        with self._store.writing() as connection:
            item = self._item(connection, name, reviewer)
            before = {one.reviewer: one for one in self._decisions_on(connection, name)}
            if reviewer in before and (before[reviewer].verdict, before[reviewer].content) == (verdict, content):
                return Decided(name, item.state, ())
            self._check_open(connection, item, reviewer)
            now = self._now()
            held = sa.select(_C.claimed).where(_C.item == name, _C.reviewer == reviewer)
            claimed = connection.execute(held.where(_C.expires > now.timestamp())).scalar()
            if claimed is None:
                do = "Claim it again; nothing was changed."
                raise NotYoursError(f"a claim of {reviewer!r} on {name}", "none, or one that has run out", do)
            seconds = now.timestamp() - claimed
            decision = Decision(name, reviewer, verdict, content, now, seconds)
            connection.execute(sa.insert(tables.decisions), [decision_row(decision)])
            connection.execute(sa.delete(tables.claims).where(_C.item == name, _C.reviewer == reviewer))
            if item.proposal.expected is not None:
                return Decided(name, self._item(connection, name, reviewer).state, ())
            return self._settle(connection, item, [*before.values(), decision])

    def _settle(self, connection: sa.Connection, item: Item, decisions: Sequence[Decision]) -> Decided:
        """Write what the decisions amount to: the item's state, and the events where enough of them agree."""
        agreeing = settled(item.proposal, decisions, self._needed(item.proposal), self.same)
        opinions = any(one.verdict != "skip" for one in decisions)
        state: State = "done" if agreeing else "waiting" if opinions else "open"
        made = [taught(item.proposal, decision) for decision in agreeing]
        events = [event for event in made if event is not None]
        report = append_within(connection, events)
        if report.refused:
            raise IntegrityError(f"review item {item.id}: {report.refused[0].reason}")
        connection.execute(sa.update(tables.items).where(_I.id == item.id).values(state=state))
        return Decided(item.id, state, tuple(event.id for event in events))

    def _needed(self, proposal: Proposal) -> int:
        return 2 if proposal.kind in self.settings.two_person else 1

    def _check_open(self, connection: sa.Connection, item: Item, reviewer: str) -> None:
        others = "Take another one: illm review next."
        if connection.execute(sa.select(_A.item).where(_A.item == item.id, _A.person == reviewer)).first():
            raise NotYoursError(
                f"a reviewer who had no part in {item.id}", f"{reviewer!r}, who said some of it", others
            )
        if connection.execute(sa.select(_D.item).where(_D.item == item.id, _D.reviewer == reviewer)).first():
            raise NotYoursError(f"one decision of {reviewer!r} on {item.id}", "another, which stands", others)
        if item.proposal.expected is not None:
            return
        if item.state == "done":
            raise NotYoursError(f"{item.id} to be open", "that it is decided", others)
        if item.claimed_by not in (None, reviewer):
            raise NotYoursError(f"{item.id} to be free", f"that {item.claimed_by!r} holds it", others)

    def _claimed(self, connection: sa.Connection, name: str, reviewer: str) -> Claim:
        """Hold an item: a claim that is alive keeps its beginning and runs on."""
        now = self._now().timestamp()
        expires = now + self.settings.lease_seconds
        here = (_C.item == name, _C.reviewer == reviewer)
        held = connection.execute(sa.select(_C.claimed).where(*here, _C.expires > now)).scalar()
        connection.execute(
            sa.delete(tables.claims).where(_C.item == name, (_C.reviewer == reviewer) | (_C.expires <= now))
        )
        row = {"item": name, "reviewer": reviewer, "claimed": now if held is None else held, "expires": expires}
        connection.execute(sa.insert(tables.claims), [row])
        return Claim(self._item(connection, name, reviewer), reviewer, datetime.fromtimestamp(expires, UTC))

    def _view(self, reviewer: str | None) -> View:
        if reviewer is not None:
            check_reviewer(reviewer)
        return View(reviewer, self._now().timestamp(), self.settings.two_person)

    def _item(self, connection: sa.Connection, name: str, reviewer: str | None) -> Item:
        check_item(name)
        view = self._view(reviewer)
        row = connection.execute(view.select().where(_I.id == name)).first()
        if row is None:
            raise unknown_item(name)
        return view.items(connection, [row])[0]

    def _decisions_on(self, connection: sa.Connection, name: str) -> list[Decision]:
        return [read_decision(row) for row in connection.execute(sa.select(tables.decisions).where(_D.item == name))]
