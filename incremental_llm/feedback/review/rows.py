"""Items and decisions as rows of the tables, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from incremental_llm.feedback.review.items import Decision, Proposal
from incremental_llm.feedback.review.tables import authors
from incremental_llm.feedback.sequence import chunks


def add_authors(connection: sa.Connection, wanted: Mapping[str, tuple[str, ...]]) -> None:
    """Add the people who may not decide an item, by item, to those who are there."""
    known: set[tuple[str, str]] = set()
    for ids in chunks(wanted):
        found = connection.execute(sa.select(authors.c.item, authors.c.person).where(authors.c.item.in_(ids)))
        known.update((row.item, row.person) for row in found)
    new = {(name, person) for name, people in wanted.items() for person in people} - known
    if new:
        rows = [{"item": name, "person": person} for name, person in sorted(new)]
        connection.execute(sa.insert(authors), rows)


def item_row(name: str, proposal: Proposal, created: str) -> dict[str, Any]:
    """A new item."""
    return {
        "id": name,
        "kind": proposal.kind,
        "state": "open",
        "seeded": proposal.expected is not None,
        "priority": proposal.priority,
        "created": created,
        "body": json.dumps(proposal.model_dump(mode="json"), separators=(",", ":")),
    }


def read_proposal(row: Any) -> Proposal:
    """What an item is about."""
    return Proposal.model_validate(json.loads(row.body))


def decision_row(one: Decision) -> dict[str, Any]:
    """A decision; its time has microseconds, so that text sorts as time does."""
    content = None if one.content is None else json.dumps(one.content)
    time = one.time.astimezone(UTC).isoformat(timespec="microseconds")
    return {**vars(one), "content": content, "time": time}


def read_decision(row: Any) -> Decision:
    """The decision of a row."""
    content = None if row.content is None else json.loads(row.content)
    return Decision(row.item, row.reviewer, row.verdict, content, datetime.fromisoformat(row.time), row.seconds)
