"""The registry: snapshots, refs, attempts and quarantine in one database, objects in one folder."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Connection, select

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.artifacts import flush
from incremental_llm.errors import BaseModelError, InputError, IntegrityError, PreconditionFailed
from incremental_llm.registry import examples, lineage, schema
from incremental_llm.registry.attempts import Attempt, Quarantined, attempt_key, to_quarantine
from incremental_llm.registry.erasure import (
    Erasing,
    Erasure,
    erased_objects,
    erased_parts,
    read_erasures,
    refuse_erased,
    refuse_pending,
)
from incremental_llm.registry.examples import ExampleSighting
from incremental_llm.registry.objects import Failpoint, ObjectStore, no_failpoint
from incremental_llm.registry.queries import (
    RefMove,
    all_snapshots,
    read_attempts,
    read_committed,
    read_moves,
    read_quarantine,
    read_refs,
    read_snapshot,
    resolve,
)
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.transaction import Transaction, transaction
from incremental_llm.registry.updates import (
    GATED_REFS,
    AddSnapshot,
    EventUse,
    MoveRef,
    QuarantineEvents,
    RecordAttempt,
    RecordSuite,
    RecordUses,
    RefIs,
    check_suite,
    describe_base,
    same_base,
)
from incremental_llm.registry.verify import Problems, verify

PRODUCTION = "production"


class Registry:
    """Use `create` once and `open` afterwards; both are context managers.

    Args:
        root: folder of the registry; objects lie in `root/objects`.
        url: database; None is SQLite at `root/registry.db`.
        failpoint: called with the name of each durable step, for tests of what a failure there leaves.
    """

    def __init__(self, root: Path, url: str | None = None, *, failpoint: Failpoint = no_failpoint) -> None:
        self.root = root
        self._failpoint = failpoint
        self._objects = ObjectStore(root / "objects", failpoint)
        self._engine = schema.engine_for(url or URL.create("sqlite", database=str(root / "registry.db")))

    @classmethod
    def create(
        cls,
        root: Path,
        stack: Stack,
        *,
        url: str | None = None,
        cursor: int = 0,
        note: str = "",
        failpoint: Failpoint = no_failpoint,
    ) -> Registry:
        """A new registry: version 0 is the base itself, and `production` points to it.

        Raises:
            InputError: there is a registry already, or the stack has adapters.
        """
        if stack.adapters:
            raise InputError(f"{root}: expected a base without adapters for version 0, found {len(stack.adapters)}")
        (root / "objects").mkdir(parents=True, exist_ok=True)
        registry = cls(root, url, failpoint=failpoint)

        def begin(connection: Connection) -> None:
            if schema.exists(connection):
                raise InputError(f"{root}: expected no registry, found one: open it, or choose another folder")
            schema.create(connection)

        with transaction(registry._engine, registry._objects, failpoint, begin) as tx:
            first = Snapshot.sealed(version=0, kind="init", time=tx.time, stack=stack, cursor=cursor, note=note)
            tx.add(AddSnapshot(snapshot=first), MoveRef(name=PRODUCTION, version=0, reason="created"))
        flush(root)
        return registry

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        url: str | None = None,
        base: BaseRef | None = None,
        failpoint: Failpoint = no_failpoint,
    ) -> Registry:
        """The registry at `root`; with `base`, only if it was made for that base.

        Raises:
            InputError: there is no registry.
            BaseModelError: weights or chat template differ from the registry's.
        """
        if url is None and not (root / "registry.db").is_file():
            raise InputError(f"{root}: expected a registry, found none: make one with `illm init` or Registry.create")
        registry = cls(root, url, failpoint=failpoint)
        with registry._read() as connection:
            there = schema.exists(connection)
            old = there and schema.format_of(connection) == "1"
        if old:
            registry._upgrade()
        with registry._read() as connection:
            first = read_snapshot(connection, 0) if there else None
        if first is None:
            raise InputError(f"{root}: expected a registry, found an empty database: make one with `illm init`")
        held = first.stack.base
        if base is not None and not same_base(held, base):
            raise BaseModelError(
                f"{root}: expected {describe_base(held)} as when the registry was made, found {describe_base(base)}. "
                "Adapters fit one base only: use that base again, or make a new registry for this one."
            )
        return registry

    @classmethod
    def exists(cls, root: Path) -> bool:
        """Whether `root` holds a registry; a kill while one is made leaves an empty database, which is none."""
        if not (root / "registry.db").is_file():
            return False
        with cls(root) as registry, registry._read() as connection:
            return schema.exists(connection)

    def _upgrade(self) -> None:
        """From format 1, whoever of several processes comes first."""
        with schema.writing(self._engine) as connection, connection.begin():
            if schema.lock(connection) == "1":
                examples.upgrade(connection, self._objects)

    # objects

    @property
    def objects(self) -> Path:
        """The object folder, for `adapters.stack.adapter_paths`."""
        return self._objects.root

    def put_object(self, folder: Path) -> str:
        """Copy a folder into the store, whole and verified; see `ObjectStore.put_folder`."""
        return self._objects.put_folder(folder)

    def put_json(self, value: Any) -> str:
        """Store a JSON value under its `json_digest`."""
        return self._objects.put_json(value)

    def get_json(self, digest: str) -> Any:
        """A stored JSON value; IntegrityError when absent or damaged."""
        return self._objects.get_json(digest)

    def object_path(self, digest: str, *, verified: bool = False) -> Path:
        """Where an object lies; `verified` reads it and compares its digest. IntegrityError when absent or damaged."""
        if verified:
            self._objects.verify(digest)
        return self._objects.path(digest)

    # reading

    def head(self, ref: str = PRODUCTION) -> Snapshot:
        """The snapshot that a ref points to."""
        return self.get(ref)

    def get(self, ref: int | str) -> Snapshot:
        """A snapshot by version (3, "3", "v3") or ref name.

        Raises:
            UnknownRefError: no such version or ref; the message has the nearest name.
        """
        with self._read() as connection:
            return resolve(connection, ref)

    def list(self) -> tuple[Snapshot, ...]:
        """All snapshots, version 0 first."""
        with self._read() as connection:
            return all_snapshots(connection)

    def refs(self) -> dict[str, int]:
        """Ref name -> version."""
        with self._read() as connection:
            return read_refs(connection)

    def history(self, ref: str = PRODUCTION) -> tuple[RefMove, ...]:
        """Every move of a ref, oldest first."""
        with self._read() as connection:
            return read_moves(connection, ref)

    def committed(self, attempt: str) -> Snapshot | None:
        """The version that an attempt made: the way to find out after CommitStateUnknown."""
        with self._read() as connection:
            return read_committed(connection, attempt)

    # committing

    def commit_increment(
        self,
        *,
        parent: int,
        stack: Stack,
        cursor: int,
        decision: str | None,
        replay: str | None = None,
        corrections: str | None = None,
        dataset: str | None = None,
        report: str | None = None,
        recipe: str | None = None,
        attempt: str | None = None,
        note: str = "",
        uses: Iterable[EventUse] = (),
        ref: str = PRODUCTION,
        line: str = PRODUCTION,
        replaces: int = 0,
    ) -> Snapshot:
        """Promote a candidate: one transaction adds the next version and moves `ref` from `parent` to it.

        Args:
            line: the ref that has to be at `parent`; a rebuild has one of its own, and moves it.
            replaces: how many of the parent's last adapters the new one takes the place of.

        Raises:
            PreconditionFailed: `line` is no longer `parent`, the decision is missing, did not pass or is for
                another stack, an object is missing, or the attempt was committed before. Nothing was changed.
            CommitError: another failure before the commit; nothing was changed.
            CommitStateUnknown: the commit itself failed: ask `committed(attempt)`.
        """
        with self._write() as tx:
            if line == PRODUCTION:
                _check_ref(ref)
            _check_extends(resolve(tx.connection, parent), stack, replaces, cursor)
            tx.require(RefIs(name=line, version=parent))
            snapshot = Snapshot.after(
                _last(tx),
                parent=parent,
                kind="increment",
                time=tx.time,
                stack=stack,
                replay=replay,
                corrections=corrections,
                cursor=cursor,
                dataset=dataset,
                report=report,
                decision=decision,
                recipe=recipe,
                attempt=attempt,
                note=note,
            )
            known = dataset is not None and dataset in self._objects
            made = tuple(examples.places_in(self._objects.path(str(dataset)))) if known else ()
            seen = RecordUses(version=snapshot.version, adapter=stack.adapters[-1], uses=tuple(uses), examples=made)
            moved = ref if line == PRODUCTION else line
            tx.add(AddSnapshot(snapshot=snapshot), seen, MoveRef(name=moved, version=snapshot.version, reason=note))
        return snapshot

    def promote(
        self, version: int | str, *, ref: str = PRODUCTION, expected: int | None = None, reason: str = ""
    ) -> Snapshot:
        """Move a ref to a version that carries a passing decision for its stack, or to the base.

        To undo an increment use `rollback`, which also keeps its events from being trained again.

        Args:
            expected: refuse unless the ref is at this version now.

        Raises:
            PreconditionFailed: no passing decision, or a stack that was trained on somebody who was erased, or an
                erasure that has not ended.
        """
        with self._write() as tx:
            _check_ref(ref)
            snapshot = resolve(tx.connection, version)
            refuse_pending(read_erasures(tx.connection))
            refuse_erased(tx.connection, snapshot)
            if expected is not None:
                tx.require(RefIs(name=ref, version=expected))
            tx.add(MoveRef(name=ref, version=snapshot.version, reason=reason or f"promote {snapshot.version}"))
        return snapshot

    def rollback(self, to: int | str, reason: str, *, expected: int | None = None) -> Snapshot:
        """A new version with stack, replay buffer, corrections and cursor of `to`; `production` moves to it.

        In the same transaction the events that the undone increments consumed are quarantined. With `expected`, it is
        refused unless production is at that version now.

        Raises:
            InputError: production is at that state already.
            PreconditionFailed: the target has no passing decision, or was trained on somebody who was erased.
        """
        with self._write() as tx:
            if expected is not None:
                tx.require(RefIs(name=PRODUCTION, version=expected))
            head, target = resolve(tx.connection, PRODUCTION), resolve(tx.connection, to)
            if target.version in (head.version, head.restores):
                raise InputError(f"rollback to {target.version}: production ({head.version}) is that state already")
            refuse_erased(tx.connection, target)
            snapshot = Snapshot.after(
                _last(tx),
                parent=head.version,
                kind="rollback",
                time=tx.time,
                restores=target.version,
                note=reason,
                **{name: getattr(target, name) for name in ("stack", "replay", "corrections", "cursor")},
                **{name: getattr(target, name) for name in ("report", "decision", "recipe")},
            )
            snapshots = all_snapshots(tx.connection)
            tx.add(AddSnapshot(snapshot=snapshot), MoveRef(name=PRODUCTION, version=snapshot.version, reason=reason))
            for increment, seqs in lineage.given_back(snapshots, head.version, target.version).items():
                why = f"increment {increment} was rolled back: {reason}"
                tx.add(QuarantineEvents(seqs=seqs, reason=why, version=snapshot.version))
        return snapshot

    # rejected attempts

    def record_attempt(
        self,
        *,
        parent: int,
        seqs: Iterable[int],
        reason: str,
        recipe: str | None = None,
        seed: int = 0,
        stack_digest: str | None = None,
        decision: str | None = None,
        report: str | None = None,
        dataset: str | None = None,
        adapter: str | None = None,
        uses: Iterable[EventUse] = (),
        trusted: Collection[int] = (),
    ) -> Attempt:
        """Keep a refused candidate, without a version; events refused for the second time are quarantined with it.

        But for the `trusted` ones: what ends a truth on good authority does so whatever it arrived with.

        The same batch, recipe, parent and seed are one attempt: recording it again returns the first record.

        Raises:
            PreconditionFailed: the decision passed, this attempt was committed, or production is no longer `parent`: a
                refusal against a version that does not serve says nothing, and is no try.
        """
        batch = tuple(sorted(set(seqs)))
        if not batch:
            raise InputError("attempt: expected the seqs of its batch, found none")
        key = attempt_key(batch, recipe, parent, seed)
        with self._write() as tx:
            earlier = read_attempts(tx.connection, batch[0], batch[-1])
            attempt = next((known for known in earlier if known.id == key), None)
            if attempt is None:
                attempt = Attempt(
                    id=key,
                    time=tx.time,
                    parent=resolve(tx.connection, parent).version,
                    seqs=batch,
                    recipe=recipe,
                    seed=seed,
                    reason=reason,
                    stack_digest=stack_digest,
                    decision=decision,
                    report=report,
                    dataset=dataset,
                    adapter=adapter,
                )
                tx.require(RefIs(name=PRODUCTION, version=attempt.parent))
                tx.add(RecordAttempt(attempt=attempt), RecordUses(attempt=key, adapter=adapter, uses=tuple(uses)))
                last = to_quarantine((*earlier, attempt))
                spent = tuple(seq for seq, attempt_id in last.items() if attempt_id == key and seq not in trusted)
                if spent:
                    why = f"part of two rejected attempts, the last one: {reason}"
                    tx.add(QuarantineEvents(seqs=spent, reason=why, attempt=key))
        return attempt

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

    def record_suite(self, name: str, version: int, digest: str) -> None:
        """Pin a suite's content at first sight.

        Raises:
            SuiteError: the same name and version had other content before.
        """
        with self._write() as tx:
            tx.add(RecordSuite(name=name, version=version, digest=digest))

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

    def erasing(self) -> Erasing:
        """The steps by which a person is erased; `incremental_llm.erase` takes them in their order."""
        return Erasing(self._engine, self._objects, self._failpoint)

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

    def begin_line(self, line: str, version: int, reason: str) -> None:
        """Let a ref that serves nobody point to a version, for `commit_increment` to go on from there."""
        if line in GATED_REFS:
            raise InputError(f"line {line!r}: expected a ref that serves nobody, found one that does. Use promote.")
        with self._write() as tx:
            tx.add(MoveRef(name=line, version=resolve(tx.connection, version).version, reason=reason))

    # health

    def verify(self) -> Problems:
        """Every broken promise, in words; empty when all is well. Reads every object."""
        with self._read() as connection:
            return verify(connection, self._objects)

    def close(self) -> None:
        """Give back the database connections."""
        self._engine.dispose()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> AbstractContextManager[Connection]:
        return schema.reading(self._engine)

    def _write(self) -> AbstractContextManager[Transaction]:
        return transaction(self._engine, self._objects, self._failpoint)


def _last(tx: Transaction) -> Snapshot:
    if tx.last is None:
        raise IntegrityError("expected version 0 in the registry, found no version: restore the database from a copy")
    return tx.last


def _check_ref(ref: str) -> None:
    if ref not in GATED_REFS:
        near = difflib.get_close_matches(ref, GATED_REFS, n=1, cutoff=0.0)[0]
        raise InputError(f"ref {ref!r}: expected one of {', '.join(GATED_REFS)}, did you mean {near!r}?")


def _check_extends(parent: Snapshot, stack: Stack, replaces: int, cursor: int) -> None:
    """An increment is its parent's stack with one adapter on top, in the place of its last `replaces` ones; it never
    gives events back."""
    before = parent.stack.adapters
    if not stack.adapters or replaces > len(before) or stack.adapters[:-1] != before[: len(before) - replaces]:
        raise PreconditionFailed(
            f"expected the {len(before)} adapters of version {parent.version} without the last {replaces}, and one new "
            f"on top, found a stack of {len(stack.adapters)} that does not extend it. Nothing was changed."
        )
    if cursor < parent.cursor:
        raise PreconditionFailed(
            f"expected a cursor of at least {parent.cursor} as in version {parent.version}, found {cursor}. "
            "Nothing was changed."
        )
