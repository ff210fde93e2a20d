"""The promises that the rows of a registry keep among themselves: chain, refs, whole commits, rollbacks, erasures.

Each function yields a problem for each breach; none reads an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, select

from incremental_llm.registry import lineage, schema
from incremental_llm.registry.erasure import SAME_COMMAND, read_erasures
from incremental_llm.registry.queries import read_tags
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.updates import same_base


class Problem(BaseModel):
    """One broken promise: what it is about ("version 3", "ref production", "object ab12…") and what is wrong."""

    model_config = ConfigDict(frozen=True)

    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


def chain(snapshots: Sequence[Snapshot]) -> Iterator[Problem]:
    """Versions are dense, hash-chained and on one base."""
    if not snapshots or snapshots[0].version != 0 or snapshots[0].previous_hash is not None:
        yield Problem(subject="version 0", text="expected the base as first version, found none that can be read")
    for before, after in pairwise(snapshots):
        subject = f"version {after.version}"
        if after.version != before.version + 1:
            text = f"expected version {before.version + 1} after {before.version}: versions are missing"
            yield Problem(subject=subject, text=text)
        elif after.previous_hash != before.hash:
            yield Problem(subject=subject, text=f"not chained to version {before.version}: its hash differs")
        if not same_base(before.stack.base, after.stack.base):
            yield Problem(subject=subject, text=f"stands on another base than version {before.version}")
        for name in ("parent", "restores"):
            value = getattr(after, name)
            if value is not None and not 0 <= value < after.version:
                yield Problem(subject=subject, text=f"{name} is {value}, expected an earlier version")


def refs(connection: Connection, snapshots: Sequence[Snapshot]) -> Iterator[Problem]:
    """Every ref and tag resolves, and a ref is where its last move went."""
    versions = {snapshot.version for snapshot in snapshots}
    at = {row.name: row.version for row in connection.execute(select(schema.refs))}
    tags = read_tags(connection)
    if "production" not in at:
        yield Problem(subject="ref production", text="expected it to exist, found none")
    for name, version in (*at.items(), *tags.items()):
        if version not in versions:
            yield Problem(subject=f"ref {name}", text=f"points to version {version}, which is not there")
    for name in sorted(at.keys() & tags.keys()):
        yield Problem(subject=f"tag {name}", text="a ref has the same name: nobody can say which one is meant")
    moves = schema.ref_moves
    logged = {row.name: row.after for row in connection.execute(select(moves).order_by(moves.c.id))}
    for name in sorted(at.keys() | logged.keys()):
        if at.get(name) != logged.get(name):
            text = f"is {at.get(name)}, but its last recorded move is to {logged.get(name)}"
            yield Problem(subject=f"ref {name}", text=text)


def whole(connection: Connection, snapshots: Sequence[Snapshot]) -> Iterator[Problem]:
    """A commit is there with all its rows or not at all: a version, the move of a ref to it, what it read."""
    versions = {snapshot.version for snapshot in snapshots}
    moves, uses, examples = schema.ref_moves, schema.event_uses, schema.examples
    moved = set(connection.scalars(select(moves.c.after).distinct()))
    for version in sorted(versions - moved):
        yield Problem(subject=f"version {version}", text="no ref was moved to it: its commit is not whole")
    for version in sorted(moved - versions):
        yield Problem(subject=f"version {version}", text="a ref was moved to it, and it is not there")
    adapters = {snapshot.version: snapshot.stack.adapters for snapshot in snapshots}
    saw = select(uses.c.version, uses.c.adapter).where(uses.c.version.is_not(None)).distinct()
    for version, adapter in connection.execute(saw):
        if adapter not in adapters.get(version, ())[-1:]:
            text = f"events are recorded as read by its adapter {str(adapter)[:12]}, which is not the one on its stack"
            yield Problem(subject=f"version {version}", text=text)
    for version in sorted(set(connection.scalars(select(examples.c.version).distinct())) - versions):
        yield Problem(subject=f"version {version}", text="examples are recorded for it, and it is not there")


def rollbacks(connection: Connection, snapshots: Sequence[Snapshot]) -> Iterator[Problem]:
    """A rollback carries all that the version it restores had, and what it gave back is quarantined."""
    if [snapshot.version for snapshot in snapshots] != list(range(len(snapshots))):
        return  # the chain is broken, and said so
    out = set(connection.scalars(select(schema.quarantine.c.seq)))
    for snapshot in snapshots:
        if snapshot.kind != "rollback" or snapshot.restores is None or snapshot.parent is None:
            continue
        target, subject = snapshots[snapshot.restores], f"version {snapshot.version}"
        for part in ("stack", "replay", "corrections", "cursor"):
            if getattr(snapshot, part) != getattr(target, part):
                text = f"restores version {target.version} but for its {part}: they go back together or not at all"
                yield Problem(subject=subject, text=text)
        given = lineage.given_back(snapshots, snapshot.parent, target.version)
        missed = {seq for seqs in given.values() for seq in seqs} - out
        if missed:
            text = f"gave back {len(missed)} events, from {min(missed)} on, that are not quarantined"
            yield Problem(subject=subject, text=text)


def erasures(connection: Connection, snapshots: Sequence[Snapshot]) -> Iterator[Problem]:
    """An erasure has ended, and names every version that stands on what it concerns."""
    for erasure in read_erasures(connection):
        if erasure.status == "pending":
            text = f"begun {erasure.begun:%Y-%m-%d %H:%M} and not ended: it goes on with {SAME_COMMAND}"
            yield Problem(subject=f"erasure {erasure.id}", text=text)
            continue
        known = [s for s in snapshots if s.time <= (erasure.finished or erasure.begun)]
        held = {s.version for s in known if not set(erasure.adapters).isdisjoint(s.stack.adapters)}
        for version in sorted(held - set(erasure.versions)):
            yield Problem(subject=f"erasure {erasure.id}", text=f"version {version} holds what it erased, unmarked")
