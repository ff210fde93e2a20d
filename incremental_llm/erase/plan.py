"""What erasing a person would do, read from the workspace as it is; nothing is changed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from incremental_llm.config import RunConfig
from incremental_llm.erase.files import FileStep, file_steps
from incremental_llm.erase.objects import Replacement, orphans, replacements
from incremental_llm.erase.redaction import Redaction
from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, tables
from incremental_llm.feedback.erasure import (
    SHORTEST_ALSO,
    Belongings,
    Erased,
    Needles,
    belongings,
    check_rules,
    doubtful,
    mentioned,
    rows_to_change,
)
from incremental_llm.feedback.pseudonyms import Pseudonyms, Renames, read_pseudonyms
from incremental_llm.registry import (
    Erasure,
    Registry,
    Seen,
    Snapshot,
    adapters_holding,
    consumed,
    increments_in,
    versions_holding,
)
from incremental_llm.registry.objects import ObjectStore

SCRATCH = ".erase.tmp"


@dataclass(frozen=True)
class Source:
    """A file outside of the workspace that holds the person; nobody but its owner changes it."""

    path: Path
    what: str


@dataclass(frozen=True)
class ErasurePlan:
    """What is the person's, where it is, and what follows.

    `pending` is an erasure of him that was begun and has not ended. `increments` were trained on him; `versions` are
    all whose stack holds one of the `adapters` that were; `serving` are the refs among them. `rebuild` are the
    increments that production stands on from the first of them on, which are to be made again from `rebuild_events`
    places of the log, and took `rebuild_seconds` then, as far as that is known. `rows` are those of the feedback
    database that would change, by table; `unsure` may be his, and stay.
    """

    person: str
    pending: Erasure | None
    found: Belongings
    seen: Seen
    increments: tuple[int, ...]
    versions: tuple[int, ...]
    adapters: frozenset[str]
    serving: tuple[str, ...]
    rebuild: tuple[int, ...]
    rebuild_events: int
    rebuild_seconds: float
    objects: tuple[Replacement, ...]
    discarded: tuple[str, ...]
    files: tuple[FileStep, ...]
    rows: Mapping[str, int]
    unsure: tuple[str, ...]
    outside: tuple[Source, ...]
    redaction: Redaction
    needles: Needles

    @property
    def kinds(self) -> dict[str, int]:
        """How many objects of each kind give way to others."""
        kinds = [one.kind for one in self.objects]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def plan_erasure(
    registry: Registry, store: FeedbackStore, config: RunConfig, person: str, also: Collection[str] = ()
) -> ErasurePlan:
    """What erasing `person`, a user or a reviewer, would do; `also` are other strings by which he is known.

    Raises:
        InputError: nobody of this name, policy changes of his that nobody else has made, or a table without a rule.
    """
    check_rules(store)
    if short := [text for text in also if len(text.strip()) < SHORTEST_ALSO]:
        raise InputError(
            f"erase: expected text of {SHORTEST_ALSO} characters or more that marks what is theirs, found --also "
            f"{short[0]!r}, which many texts hold. Give a longer one. Nothing was changed."
        )
    found, names = belongings(store, person), _pseudonyms(store)
    renames = Renames({*found.events, person}, names)
    seen = registry.erasing().seen(found.events, person, renames)
    needles = Needles(person, found.texts, also)
    erased = Erased("", person, found.events, found.naming, needles, names)
    with store.reading() as connection:
        named, unsure = mentioned(connection, erased), tuple(doubtful(connection, erased))
    earlier = [one for one in registry.erasures() if one.person == names.of(person)]
    pending = next((one for one in earlier if one.status == "pending"), None)
    if not found.events and pending is None and not named and (earlier or not (seen.had or seen.attempts)):
        raise InputError(_nobody(person, earlier))
    if person in config.compile.policy_reviewers:
        raise InputError(
            f"erase: expected a recipe that does not name {person!r}, found it in compile.policy_reviewers, and every "
            "night to come would record it again. Take it out of the recipe first. Nothing was changed."
        )
    if found.in_force:
        raise InputError(_still_in_force(person, found))
    snapshots = registry.list()
    retrained = registry.retrained()
    adapters = adapters_holding(snapshots, seen.adapters | set(pending.adapters if pending else ()), retrained)
    versions = versions_holding(snapshots, adapters, retrained)
    redaction = Redaction(person, found.events, _tainted(registry, snapshots, adapters), renames)
    standing = increments_in(snapshots, registry.head().version)
    again = _from_first(sorted(standing), sorted(seen.trained | set(pending.increments if pending else ())))
    objects = ObjectStore(registry.objects)
    stacks = {s.stack.digest for s in snapshots} | {a.stack_digest or "" for a in registry.attempts()}
    return ErasurePlan(
        person=person,
        pending=pending,
        found=found,
        seen=seen,
        increments=tuple(sorted(seen.trained)),
        versions=versions,
        adapters=adapters,
        serving=tuple(ref for ref, version in registry.refs().items() if version in versions),
        rebuild=again,
        rebuild_events=sum(len(consumed(snapshots, version)) for version in again),
        rebuild_seconds=_seconds(config.workspace, again),
        objects=tuple(replacements(objects, redaction, config.workspace / SCRATCH)),
        discarded=orphans(registry, objects),
        files=tuple(file_steps(config.workspace, redaction, stacks)),
        rows=rows_to_change(store, erased),
        unsure=unsure,
        outside=tuple(_outside(store, config, needles)),
        redaction=redaction,
        needles=needles,
    )


def _pseudonyms(store: FeedbackStore) -> Pseudonyms:
    """The database's; before there are any, others that a plan does with."""
    with store.reading() as connection:
        return read_pseudonyms(connection) or Pseudonyms(secrets.token_bytes(32))


def _from_first(standing: Sequence[int], trained: Sequence[int]) -> tuple[int, ...]:
    """The increments that production stands on, from the first that was trained on him."""
    first = next((version for version in standing if version in trained), None)
    return () if first is None else tuple(version for version in standing if version >= first)


def _seconds(workspace: Path, versions: Collection[int]) -> float:
    """How long these versions took to be made, by the records of their nights."""
    nights = (json.loads(path.read_text(encoding="utf-8"))["night"] for path in workspace.glob("runs/*/night.json"))
    return sum(float(night["seconds"]) for night in nights if night["version"] in versions)


def _tainted(registry: Registry, snapshots: Sequence[Snapshot], adapters: frozenset[str]) -> frozenset[str]:
    """Digests of the stacks that hold one of the adapters, those of refused candidates included."""
    held = {s.version for s in snapshots if not adapters.isdisjoint(s.stack.adapters)}
    tainted = {s.stack.digest for s in snapshots if s.version in held}
    for attempt in registry.attempts():
        own = {sighting.adapter for sighting in registry.events_of_attempt(attempt.id)}
        if attempt.stack_digest is not None and (attempt.parent in held or not adapters.isdisjoint(own - {None})):
            tainted.add(attempt.stack_digest)
    return frozenset(tainted)


def _outside(store: FeedbackStore, config: RunConfig, needles: Needles) -> list[Source]:
    """Logs that were imported, and suites: files of the operator's that hold his name or words."""
    with store.reading() as connection:
        imported = [Path(source) for source in connection.scalars(sa.select(tables.marks.c.source))]
    found = [Source(path, "was imported") for path in sorted(imported) if path.is_file() and needles.in_file(path)]
    gone = [Source(path, "was imported, and is not there any more") for path in sorted(imported) if not path.is_file()]
    suites = sorted(path for path in config.suites.folder.rglob("*") if path.is_file() and needles.in_file(path))
    return [*found, *gone, *(Source(path, "is a suite's: give it a new version without him") for path in suites)]


def _nobody(person: str, earlier: Sequence[Erasure]) -> str:
    if earlier:
        return (
            f"erase: expected feedback of {person!r}, found none since erasure {earlier[-1].id} of "
            f"{earlier[-1].begun:%Y-%m-%d %H:%M}, which has ended. Nothing was changed."
        )
    return f"erase: expected a user or reviewer of the log, found none called {person!r}. Nothing was changed."


def _still_in_force(person: str, found: Belongings) -> str:
    said = "; ".join(f"{change} ends {', '.join(names[:3])}" for change, names in list(found.in_force.items())[:3])
    count = len(found.in_force)
    return (
        f"erase: expected no policy change by {person!r} that nobody else has made, found {count} ({said}). "
        "With it erased, what it ended would count as true again: record a policy_change by another reviewer with the "
        "right to it that names the same events, then erase. Nothing was changed."
    )
