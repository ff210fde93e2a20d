"""What is a person's in the feedback database: all that he said, and all that was said about his interactions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.sequence import chunks

if TYPE_CHECKING:
    from incremental_llm.feedback.store import FeedbackStore

_CHANGE = "policy_change"
_READ = 2000


@dataclass(frozen=True)
class Belongings:
    """`events` are the ids of all that is erased with `person`, and `places` their numbers, as far as they have any.

    Beside his own events these are the ones that name one of them: a thumb or a correction of a reply to him holds his
    question through the interaction. A policy change of somebody else that names one stays (`naming`); `in_force`
    maps his own policy changes to what they alone end, and `texts` are his words.
    """

    person: str
    events: frozenset[str]
    places: frozenset[int]
    naming: frozenset[str]
    in_force: dict[str, tuple[str, ...]]
    texts: frozenset[str]


def belongings(store: FeedbackStore, person: str) -> Belongings:
    """Read by the indices of the links; nothing is changed."""
    with store.reading() as connection:
        own = _linked(connection, "person", {person})
        found, newest, naming = set(own), set(own), set[str]()
        while newest:
            named = _linked(connection, "event", newest)
            changes = {name for name, kind in named.items() if kind == _CHANGE}
            naming |= changes - found
            newest = named.keys() - changes - found
            found |= newest
        bodies = dict(_bodies(connection, found))
        others = dict(_bodies(connection, naming))
        in_force = _alone(connection, {k: v for k, (_, v) in bodies.items() if v.get("type") == _CHANGE}, found)
    return Belongings(
        person=person,
        events=frozenset(found),
        places=frozenset(seq for seq, _ in bodies.values() if seq is not None),
        naming=frozenset(others),
        in_force=in_force,
        texts=frozenset(text for _, body in bodies.values() for text in _texts(body)),
    )


def _linked(connection: sa.Connection, kind: str, targets: Collection[str]) -> dict[str, str]:
    """Id -> type of the events that have a link of this kind to one of the targets."""
    found: dict[str, str] = {}
    if any(not tables.is_id(target) for target in targets):  # what is not printable has no link: read everything
        for name, body in _every_body(connection):
            if any(what == kind and target in targets for what, target in tables.links_of(body, every=True)):
                found[name] = str(body.get("type"))
        return found
    link, event = tables.links.c, tables.events.c
    for names in chunks(targets):
        wanted = sa.select(event.id, event.type).join(tables.links, link.event_id == event.id)
        rows = connection.execute(wanted.where(link.kind == kind, link.target.in_(names)))
        found |= {row.id: row.type for row in rows}
    return found


def _every_body(connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    events, last = tables.events.c, ""
    while True:
        wanted = sa.select(events.id, events.body).where(events.id > last).order_by(events.id).limit(_READ)
        rows = connection.execute(wanted).all()
        yield from ((row.id, json.loads(row.body)) for row in rows)
        if len(rows) < _READ:
            return
        last = rows[-1].id


def _bodies(connection: sa.Connection, ids: Collection[str]) -> Iterator[tuple[str, tuple[int | None, dict[str, Any]]]]:
    events = tables.events.c
    for names in chunks(sorted(ids)):
        wanted = sa.select(events.id, events.seq, events.body).where(events.id.in_(names))
        for row in connection.execute(wanted):
            yield row.id, (row.seq, json.loads(row.body))


def _alone(
    connection: sa.Connection, changes: dict[str, dict[str, Any]], erased: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """What each of these policy changes ends that no other one does, and that is not erased itself."""
    ended = {name for body in changes.values() for name in body["supersedes"]} - set(erased)
    others = {name for name, kind in _linked(connection, "event", ended).items() if kind == _CHANGE} - changes.keys()
    covered = {name for _, (_, body) in _bodies(connection, others) for name in body["supersedes"]}
    left = {name: tuple(one for one in body["supersedes"] if one in ended - covered) for name, body in changes.items()}
    return {name: names for name, names in left.items() if names}


def _texts(body: dict[str, Any]) -> Iterator[str]:
    """What the person, or somebody about him, has written: questions, replies, comments, corrections."""
    for message in body.get("messages") or ():
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            yield message["content"]
    yield from (body[key] for key in ("reply", "comment", "content", "note") if isinstance(body.get(key), str))
