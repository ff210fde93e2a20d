"""Where feedback went, and what came from where: by an event, a person, an increment or an example.

    trace_event(registry, store, "k1")     what it says, what is about it, which increments had it, who holds it now
    trace_person(registry, store, "u1")    all that a user or reviewer said, and every adapter that was trained on it
    trace_increment(registry, 3)           the events of version 3 and what became of each
    trace_example(registry, "1f0c...")     the events that an example was made from, and the versions that made it

All comes from indices of the two databases, but for examples: these are looked up in the datasets of the versions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from incremental_llm.dataset.examples import parse_example
from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, event_to_dict
from incremental_llm.feedback.store import EventPlace
from incremental_llm.registry import AdapterSighting, Registry, Sighting, Snapshot, versions_holding
from incremental_llm.registry.lineage import SAW

_EXAMPLES = ("sft", "pairs", "unpaired")
_SHORTEST_ID = 8  # hex digits of an example's id


@dataclass(frozen=True)
class EventTrace:
    """`about` are the events that name this one; `held_by` are the versions whose stack was trained on it."""

    seq: int | None
    event: dict[str, Any]
    about: tuple[EventPlace, ...]
    sightings: tuple[Sighting, ...]
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
    stored = store.get([name]).get(name)
    waiting = next((event for event in store.waiting() if event.id == name), None) if stored is None else None
    sightings = registry.sightings(name)
    if stored is None and waiting is None and not sightings:
        raise InputError(f"trace: expected the id of an event in the log, found none called {name!r}.")
    event = stored.event if stored else waiting
    return EventTrace(
        seq=stored.seq if stored else None,
        event=event_to_dict(event) if event else {},
        about=store.about(name),
        sightings=sightings,
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
    if len(name) < _SHORTEST_ID:
        raise InputError(f"trace: expected at least {_SHORTEST_ID} digits of an example's id, found {name!r}.")
    made: dict[str, dict[int, dict[str, Any]]] = {}
    for snapshot in registry.list():
        for row in _examples(registry, snapshot):
            example = parse_example(row)
            if example.id.startswith(name):
                made.setdefault(example.id, {})[snapshot.version] = row
    if len(made) != 1:
        found = "none" if not made else f"{len(made)}: {', '.join(sorted(made))}"
        raise InputError(f"trace: expected one example whose id begins with {name!r}, found {found}.")
    ((full, versions),) = made.items()
    return ExampleTrace(full, versions)


def _examples(registry: Registry, snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    if snapshot.dataset is None or snapshot.kind != "increment":
        return
    for name in _EXAMPLES:
        file = registry.object_path(snapshot.dataset) / f"{name}.jsonl"
        for line in file.read_text(encoding="utf-8", errors="surrogatepass").split("\n"):
            if line:
                yield json.loads(line)


def _holding(registry: Registry, adapters: set[str | None]) -> tuple[int, ...]:
    snapshots = registry.list()
    recipes = {s.recipe: registry.get_json(s.recipe) for s in snapshots if s.recipe is not None}
    retrained = [s.version for s in snapshots if s.recipe and recipes[s.recipe].get("process") == "retrain"]
    return versions_holding(snapshots, {adapter for adapter in adapters if adapter}, retrained)
