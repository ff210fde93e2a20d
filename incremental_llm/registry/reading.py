"""Reading a registry: snapshots, refs, attempts, quarantine, suites; what saw whom, and where examples are."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from incremental_llm.registry import examples, lineage, schema
from incremental_llm.registry.ancestry import Node, lineage_tree
from incremental_llm.registry.attempts import Attempt, Quarantined
from incremental_llm.registry.compare import Comparison, compare
from incremental_llm.registry.erasure import Erasure, erased_objects, erased_parts, read_erasures, refuse_pending
from incremental_llm.registry.examples import ExampleSighting
from incremental_llm.registry.queries import (
    RefMove,
    all_snapshots,
    read_attempts,
    read_committed,
    read_moves,
    read_quarantine,
    read_refs,
    read_tags,
    resolve,
)
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.storage import Storage
from incremental_llm.registry.summaries import SnapshotSummary, read_summaries
from incremental_llm.registry.updates import PRODUCTION, RecordSuite, check_suite


class Reading(Storage):
    """The questions that a registry answers; each sees one consistent state."""

    def head(self, ref: str = PRODUCTION) -> Snapshot:
        """The snapshot that a ref points to."""
        return self.get(ref)

    def get(self, ref: int | str) -> Snapshot:
        """A snapshot by version (3, "3", "v3"), ref or tag.

        Raises:
            UnknownRefError: no such version or ref; the message has the nearest name.
        """
        with self._read() as connection:
            return resolve(connection, ref)

    def list(self) -> tuple[Snapshot, ...]:
        """All snapshots, version 0 first."""
        with self._read() as connection:
            return all_snapshots(connection)

    def summaries(self, last: int | None = None) -> tuple[SnapshotSummary, ...]:
        """The newest `last` versions (None: all) as a list shows them, oldest first; much faster than `list`."""
        with self._read() as connection:
            return read_summaries(connection, last)

    def refs(self) -> dict[str, int]:
        """Ref name -> version."""
        with self._read() as connection:
            return read_refs(connection)

    def tags(self) -> dict[str, int]:
        """Tag -> version; a tag never moves."""
        with self._read() as connection:
            return read_tags(connection)

    def history(self, ref: str = PRODUCTION) -> tuple[RefMove, ...]:
        """Every move of a ref, oldest first."""
        with self._read() as connection:
            return read_moves(connection, ref)

    def committed(self, attempt: str) -> Snapshot | None:
        """The version that an attempt made: the way to find out after CommitStateUnknown."""
        with self._read() as connection:
            return read_committed(connection, attempt)

    def attempts(self) -> tuple[Attempt, ...]:
        """Rejected attempts, oldest first."""
        with self._read() as connection:
            return read_attempts(connection)

    def quarantined(self) -> frozenset[int]:
        """Seqs that no batch may hold."""
        with self._read() as connection:
            return frozenset(connection.scalars(select(schema.quarantine.c.seq)))

    def quarantine(self) -> tuple[Quarantined, ...]:
        """The same with reasons, by seq."""
        with self._read() as connection:
            return read_quarantine(connection)

    # suites and lineage

    def check_suite(self, name: str, version: int, digest: str) -> None:
        """What `record_suite` would say, without pinning anything."""
        check_suite(self.suites(), RecordSuite(name=name, version=version, digest=digest))

    def suites(self) -> dict[tuple[str, int], str]:
        """(name, version) -> digest of every suite seen."""
        with self._read() as connection:
            return {(row.name, row.version): row.digest for row in connection.execute(select(schema.suites))}

    def adapters_that_saw(self, user: str) -> tuple[lineage.AdapterSighting, ...]:
        """Adapters trained on this user's feedback, with the version or rejected attempt that made each."""
        with self._read() as connection:
            return lineage.adapters_that_saw(connection, user)

    def sightings(self, event: str) -> tuple[lineage.Sighting, ...]:
        """Increments and rejected attempts that had this event, and what became of it in each."""
        with self._read() as connection:
            return lineage.sightings_of_event(connection, event)

    def retrained(self) -> tuple[int, ...]:
        """Versions that were trained from the base, in the place of all adapters before: see `versions_holding`."""
        snapshots = self.list()
        recipes = {digest: self.get_json(digest) for digest in {s.recipe for s in snapshots} if digest is not None}
        return tuple(s.version for s in snapshots if s.recipe and recipes[s.recipe].get("process") == "retrain")

    def find_examples(self, prefix: str) -> tuple[ExampleSighting, ...]:
        """Where versions have the example whose id begins so; of many that do, two."""
        with self._read() as connection:
            return examples.sightings_of_example(connection, prefix)

    def example_kinds(self, version: int) -> tuple[str, ...]:
        """The kind of each example of a version."""
        kind, at = schema.examples.c.kind, schema.examples.c.version
        with self._read() as connection:
            return tuple(connection.scalars(select(kind).where(at == version)))

    def ancestry(self) -> tuple[Node, ...]:
        """All versions as a tree, each with what it goes on from and the names on it."""
        with self._read() as connection:
            names = {**read_refs(connection), **read_tags(connection)}
            return lineage_tree(read_summaries(connection), names)

    def compare(self, before: int | str, after: int | str) -> Comparison:
        """Two versions side by side: recipe, data, weights, scores, and what could not be compared."""
        return compare(self, before, after)

    def examples_from(self, event: str) -> tuple[ExampleSighting, ...]:
        """The examples of every version that stand on this event."""
        with self._read() as connection:
            return examples.examples_from(connection, event)

    def read_example(self, place: ExampleSighting) -> dict[str, Any]:
        """An example as its version has it."""
        dataset = self.get(place.version).dataset
        assert dataset is not None
        return examples.read_example(self._objects.path(dataset), place.kind, place.offset)

    def events_of(self, version: int | str) -> tuple[lineage.Sighting, ...]:
        """Events that the increment of this version had; a rollback has none of its own."""
        with self._read() as connection:
            return lineage.sightings_in_version(connection, resolve(connection, version).version)

    def events_of_attempt(self, attempt: str) -> tuple[lineage.Sighting, ...]:
        """Events that a rejected attempt had."""
        with self._read() as connection:
            return lineage.sightings_in_attempt(connection, attempt)

    # erasures

    def erasures(self) -> tuple[Erasure, ...]:
        """Who was erased, and what that concerned, oldest first."""
        with self._read() as connection:
            return read_erasures(connection)

    def refuse_pending(self) -> None:
        """Raises PendingErasureError while an erasure has not ended."""
        refuse_pending(self.erasures())

    def erased_parts(self) -> dict[int, str]:
        """Version -> what of it was erased, in words, and whether it can be restored."""
        with self._read() as connection:
            return erased_parts(all_snapshots(connection), erased_objects(connection), read_erasures(connection))
