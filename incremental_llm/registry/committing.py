"""Changing a registry: each method is one transaction, whose preconditions are data."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from incremental_llm.adapters.stack import Stack
from incremental_llm.errors import InputError, IntegrityError, PreconditionFailed
from incremental_llm.registry import examples, lineage
from incremental_llm.registry.attempts import Attempt, attempt_key, to_quarantine
from incremental_llm.registry.erasure import read_erasures, refuse_erased, refuse_pending
from incremental_llm.registry.queries import all_snapshots, read_attempts, resolve
from incremental_llm.registry.reading import Reading
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.transaction import Transaction
from incremental_llm.registry.updates import (
    GATED_REFS,
    PRODUCTION,
    AddSnapshot,
    EventUse,
    MoveRef,
    QuarantineEvents,
    RecordAttempt,
    RecordSuite,
    RecordUses,
    RefIs,
)


class Committing(Reading):
    """Increments, moves of production, and what was refused."""

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
        self,
        version: int | str,
        *,
        ref: str = PRODUCTION,
        expected: int | None = None,
        reason: str = "",
        quarantine: Collection[int] = (),
    ) -> Snapshot:
        """Move a ref to a version that carries a passing decision for its stack, or to the base.

        To undo an increment use `rollback`, which also keeps its events from being trained again.

        Args:
            expected: refuse unless the ref is at this version now.
            quarantine: seqs of events that no increment may use again, decided in the same transaction.

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
            if quarantine:
                tx.add(QuarantineEvents(seqs=tuple(quarantine), reason=reason, version=snapshot.version))
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

    def begin_line(self, line: str, version: int, reason: str) -> None:
        """Let a ref that serves nobody point to a version, for `commit_increment` to go on from there."""
        if line in GATED_REFS:
            raise InputError(f"line {line!r}: expected a ref that serves nobody, found one that does. Use promote.")
        with self._write() as tx:
            tx.add(MoveRef(name=line, version=resolve(tx.connection, version).version, reason=reason))

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

    def record_suite(self, name: str, version: int, digest: str) -> None:
        """Pin a suite's content at first sight.

        Raises:
            SuiteError: the same name and version had other content before.
        """
        with self._write() as tx:
            tx.add(RecordSuite(name=name, version=version, digest=digest))


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
