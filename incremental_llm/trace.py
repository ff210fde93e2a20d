"""Where feedback went, and what came from where: by an event, a person, an increment or an example.

    trace_event(registry, store, "k1")     what it says, what is about it, which increments had it, who holds it now
    trace_person(registry, store, "u1")    all that a user or reviewer said, and every adapter that was trained on it
    trace_increment(registry, 3)           the events of version 3 and what became of each
    trace_example(registry, "1f0c...")     the events that an example was made from, and the versions that made it

All comes from indices of the two databases, and of what an index leads to only as much as is shown is read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, event_to_dict
from incremental_llm.feedback.store import EventPlace
from incremental_llm.registry import AdapterSighting, ExampleSighting, Registry, Sighting, versions_holding
from incremental_llm.registry.lineage import SAW

_SHORTEST_ID = 8  # hex digits of an example's id


@dataclass(frozen=True)
class EventTrace:
    """`about` are the events that name this one; `examples` were made from it, and `held_by` are the versions whose
    stack was trained on it."""

    seq: int | None
    event: dict[str, Any]
    about: tuple[EventPlace, ...]
    sightings: tuple[Sighting, ...]
    examples: tuple[ExampleSighting, ...]
    held_by: tuple[int, ...]


@dataclass(frozen=True)
class PersonTrace:
    """`held_by` are the versions whose stack was trained on anything that this person said."""

    person: str
    events: tuple[EventPlace, ...]
    adapters: tuple[AdapterSighting, ...]
    held_by: tuple[int, ...]


@dataclass(frozen=True)
class IncrementTrace:
    """The events of an increment and what became of them; `outcomes` counts these."""

    version: int
    adapter: str | None
    outcomes: dict[str, int]
    sightings: tuple[Sighting, ...]
    held_by: tuple[int, ...]


@dataclass(frozen=True)
class ExampleTrace:
    """An example as each version that made it has it: the same texts may have other sources and weights."""

    id: str
    made_by: dict[int, dict[str, Any]]


def trace_event(registry: Registry, store: FeedbackStore, name: str) -> EventTrace:
    """Raises InputError where neither the log nor an increment knows the event."""
    seq, event = store.find(name) or (None, None)
    sightings = registry.sightings(name)
    if event is None and not sightings:
        raise InputError(f"trace: expected the id of an event in the log, found none called {name!r}.")
    return EventTrace(
        seq=seq,
        event=event_to_dict(event) if event else {},
        about=store.about(name),
        sightings=sightings,
        examples=registry.examples_from(name),
        held_by=_holding(registry, {s.adapter for s in sightings if s.outcome in SAW}),
    )


def trace_person(registry: Registry, store: FeedbackStore, person: str) -> PersonTrace:
    """Raises InputError where neither the log nor an increment knows the person."""
    events, adapters = store.by_person(person), registry.adapters_that_saw(person)
    if not events and not adapters:
        raise InputError(f"trace: expected a user or reviewer of the log, found none called {person!r}.")
    return PersonTrace(person, events, adapters, _holding(registry, {one.adapter for one in adapters}))


def trace_increment(registry: Registry, version: int | str) -> IncrementTrace:
    """Raises InputError where there is no such version, or where it is no increment."""
    snapshot = registry.get(version)
    if snapshot.kind != "increment":
        raise InputError(f"trace: expected an increment, found version {snapshot.version}, which is a {snapshot.kind}.")
    sightings = registry.events_of(snapshot.version)
    adapter = snapshot.stack.adapters[-1] if snapshot.stack.adapters else None
    return IncrementTrace(
        version=snapshot.version,
        adapter=adapter,
        outcomes=dict(Counter(s.outcome for s in sightings).most_common()),
        sightings=sightings,
        held_by=_holding(registry, {adapter}),
    )


def trace_example(registry: Registry, name: str) -> ExampleTrace:
    """`name` is an example's id, or its beginning of eight digits and more.

    Raises:
        InputError: no version made such an example, or several begin so.
    """
    if len(name) < _SHORTEST_ID or not re.fullmatch(r"[0-9a-f]+", name):
        raise InputError(f"trace: expected at least {_SHORTEST_ID} digits of an example's id, found {name!r}.")
    places = registry.find_examples(name)
    ids = sorted({place.example for place in places})
    if len(ids) != 1:
        found = "none" if not ids else f"several, such as {' and '.join(ids)}"
        raise InputError(f"trace: expected one example whose id begins with {name!r}, found {found}.")
    return ExampleTrace(ids[0], {place.version: registry.read_example(place) for place in places})


def _holding(registry: Registry, adapters: set[str | None]) -> tuple[int, ...]:
    return versions_holding(registry.list(), {adapter for adapter in adapters if adapter}, registry.retrained())
