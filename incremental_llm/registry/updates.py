"""What a commit does and what it requires, as data, and the pure functions that apply and check it.

    new_state = apply(state, MoveRef(name="production", version=4))
    reason = failure(RefIs(name="production", version=3), state)        # None when it holds

The one design fact: a commit is a list of small typed records. Each can imply preconditions of its own, so nobody can
move `production` and forget to ask for the decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from incremental_llm.adapters.stack import BaseRef
from incremental_llm.dataset.examples import Kind
from incremental_llm.errors import CommitError, PreconditionFailed, SuiteError
from incremental_llm.registry.attempts import Attempt
from incremental_llm.registry.snapshot import Snapshot, body_hash

PRODUCTION = "production"

GATED_REFS = (PRODUCTION, "canary")
"""Refs that serve users: they move only to a stack with a passing decision (or back to the base of version 0)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EventUse(_Record):
    """What one increment did with one event: "used", "replayed", or the reason it was left out."""

    event: str
    seq: int | None = None
    users: tuple[str, ...] = ()
    outcome: str


class AddSnapshot(_Record):
    """Append the next version."""

    snapshot: Snapshot


class MoveRef(_Record):
    """Point a ref at a version; the move is logged."""

    name: str
    version: int
    reason: str = ""


class RepeatMove(_Record):
    """A move of a ref that another copy of this registry has made and logged: the log says the same here."""

    name: str
    before: int | None
    version: int
    time: AwareDatetime
    reason: str


class AddTag(_Record):
    """Give a version a name that never means another one."""

    name: str
    version: int
    reason: str = ""


class RemoveTag(_Record):
    """Take a tag back; its row says when."""

    name: str


class RecordAttempt(_Record):
    """Keep a rejected attempt; a known key changes nothing."""

    attempt: Attempt


class QuarantineEvents(_Record):
    """Take events out of every later batch; those already out keep their first reason."""

    seqs: tuple[int, ...]
    reason: str
    attempt: str | None = None
    version: int | None = None


class RecordSuite(_Record):
    """Pin the content of a suite's version at first sight."""

    name: str
    version: int
    digest: str


class ExamplePlace(_Record):
    """Where an example stands in a version's dataset (`offset` of its line, in bytes), and the events it is from."""

    example: str
    kind: Kind
    offset: int
    sources: tuple[str, ...]


class RecordUses(_Record):
    """Keep which events an increment (`version`) or a rejected attempt (`attempt`) saw, and the adapter it gave.

    Of an increment also the `examples` that it made of them.
    """

    version: int | None = None
    attempt: str | None = None
    adapter: str | None = None
    uses: tuple[EventUse, ...]
    examples: tuple[ExamplePlace, ...] = ()


Update = (
    AddSnapshot
    | MoveRef
    | RepeatMove
    | AddTag
    | RemoveTag
    | RecordAttempt
    | QuarantineEvents
    | RecordSuite
    | RecordUses
)


class RefIs(_Record):
    """The ref points to `version` (None: does not exist)."""

    name: str
    version: int | None


class TagIs(_Record):
    """The tag names `version` (None: there is no tag of this name)."""

    name: str
    version: int | None


class BaseIs(_Record):
    """The registry was made for this base model and chat template."""

    base: BaseRef


class DecisionPassedFor(_Record):
    """The decision object exists, says passed, and was taken for exactly this stack."""

    stack_digest: str
    decision: str | None


class DecisionRefused(_Record):
    """The decision did not pass: a candidate that passed is committed, never counted as a failed try."""

    decision: str


class ObjectsExist(_Record):
    """Every object is in the store, whole."""

    digests: tuple[str, ...]


class NotCommitted(_Record):
    """No version was made by this attempt yet."""

    attempt: str


Precondition = RefIs | TagIs | BaseIs | DecisionPassedFor | DecisionRefused | ObjectsExist | NotCommitted


@dataclass(frozen=True)
class State:
    """What a commit is judged by. `snapshots`, `decisions` and the rest need only hold what the commit names.

    `decisions` maps a digest to the decision's JSON; a digest that is absent could not be read.
    """

    last: Snapshot | None = None
    refs: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, int] = field(default_factory=dict)
    snapshots: Mapping[int, Snapshot] = field(default_factory=dict)
    attempts: frozenset[str] = frozenset()
    committed: Mapping[str, int] = field(default_factory=dict)
    quarantined: frozenset[int] = frozenset()
    suites: Mapping[tuple[str, int], str] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    objects: frozenset[str] = frozenset()


def apply(state: State, update: Update) -> State:
    """The state after one update.

    Raises:
        CommitError: the update does not fit the state (a version that is not the next, a broken chain).
        SuiteError: a suite's content changed under the same version.
    """
    match update:
        case AddSnapshot(snapshot=snapshot):
            _check_chain(state, snapshot)
            committed = {snapshot.attempt: snapshot.version} if snapshot.attempt else {}
            return replace(
                state,
                last=snapshot,
                snapshots={**state.snapshots, snapshot.version: snapshot},
                committed={**state.committed, **committed},
            )
        case MoveRef(name=name, version=version) | RepeatMove(name=name, version=version):
            _check_there(state, name, version)
            return replace(state, refs={**state.refs, name: version})
        case AddTag(name=name, version=version):
            _check_there(state, name, version)
            return replace(state, tags={**state.tags, name: version})
        case RemoveTag(name=name):
            return replace(state, tags={tag: version for tag, version in state.tags.items() if tag != name})
        case RecordAttempt(attempt=attempt):
            return replace(state, attempts=state.attempts | {attempt.id})
        case QuarantineEvents(seqs=seqs):
            return replace(state, quarantined=state.quarantined.union(seqs))
        case RecordSuite(name=name, version=version, digest=digest):
            check_suite(state.suites, update)
            return replace(state, suites={**state.suites, (name, version): digest})
        case RecordUses():
            return state


def implied(update: Update, state: State) -> tuple[Precondition, ...]:
    """Preconditions that an update carries whether or not the caller names them; `state` is the one before it."""
    match update:
        case AddSnapshot(snapshot=snapshot):
            needs: list[Precondition] = [ObjectsExist(digests=snapshot.objects)]
            if state.last is not None:
                needs.append(BaseIs(base=snapshot.stack.base))
            if snapshot.kind == "increment":
                needs.append(DecisionPassedFor(stack_digest=snapshot.stack.digest, decision=snapshot.decision))
            if snapshot.attempt is not None:
                needs.append(NotCommitted(attempt=snapshot.attempt))
            return tuple(needs)
        case MoveRef(name=name, version=version) if name in GATED_REFS and version in state.snapshots:
            snapshot = state.snapshots[version]
            if 0 in state.snapshots and snapshot.stack == state.snapshots[0].stack:
                return ()
            return (DecisionPassedFor(stack_digest=snapshot.stack.digest, decision=snapshot.decision),)
        case RepeatMove(name=name, version=version, before=before):
            moved = implied(MoveRef(name=name, version=version), state)
            return (*moved, RefIs(name=name, version=before))
        case MoveRef(name=name):
            return (TagIs(name=name, version=None),)
        case AddTag(name=name):
            return (TagIs(name=name, version=None), RefIs(name=name, version=None))
        case RecordAttempt(attempt=attempt):
            refused = () if attempt.decision is None else (DecisionRefused(decision=attempt.decision),)
            return (ObjectsExist(digests=attempt.objects), NotCommitted(attempt=attempt.id), *refused)
        case _:
            return ()


def failure(precondition: Precondition, state: State) -> str | None:
    """Why a precondition does not hold, as what was expected and what was found; None when it holds."""
    match precondition:
        case RefIs(name=name, version=version):
            found = state.refs.get(name)
            if found != version:
                return f"expected {name} to be {_version(version)}, found {_version(found)}: another job moved it"
        case TagIs(name=name, version=version):
            found = state.tags.get(name)
            if found != version:
                return f"expected tag {name} to be {_version(version)}, found {_version(found)}: a tag does not move"
        case BaseIs(base=base):
            held = None if state.last is None else state.last.stack.base
            if held is None or not same_base(held, base):
                return f"expected a stack on {describe_base(held)}, found one on {describe_base(base)}"
        case DecisionPassedFor(stack_digest=stack_digest, decision=decision):
            return _decision_failure(stack_digest, decision, state)
        case DecisionRefused(decision=decision):
            found = state.decisions.get(decision)
            if isinstance(found, Mapping) and found.get("passed") is True:
                return f"expected a decision that did not pass, found that {decision[:12]} passed: commit its candidate"
        case ObjectsExist(digests=digests):
            missing = sorted(digest[:12] for digest in set(digests) - state.objects)
            if missing:
                return f"expected every object in the store, found no whole {', '.join(missing)}: put it first"
        case NotCommitted(attempt=attempt):
            if attempt in state.committed:
                return f"expected attempt {attempt[:12]} to be new, found it as version {state.committed[attempt]}"
    return None


def check(updates: Iterable[Update], preconditions: Iterable[Precondition], state: State) -> State:
    """The state after all updates, if every precondition, given or implied, holds.

    Raises:
        PreconditionFailed: all that do not hold, listed.
    """
    failures = [failure(precondition, state) for precondition in preconditions]
    for update in updates:
        failures += [failure(precondition, state) for precondition in implied(update, state)]
        if not any(failures):
            state = apply(state, update)
        elif isinstance(update, AddSnapshot):  # so that the ref's own precondition is reported too
            state = replace(state, snapshots={**state.snapshots, update.snapshot.version: update.snapshot})
    found = list(dict.fromkeys(text for text in failures if text is not None))
    if found:
        raise PreconditionFailed("; ".join(found) + ". Nothing was changed: look at the head and decide again.")
    return state


def same_base(one: BaseRef, other: BaseRef) -> bool:
    """Whether two refs pin the same weights and chat template; names may differ (a hub id, a folder)."""
    return (one.digest, one.template_digest) == (other.digest, other.template_digest)


def describe_base(base: BaseRef | None) -> str:
    """A base in words, with both digests."""
    if base is None:
        return "no base"
    return f"base {base.name} (digest {base.digest[:12]}, template {base.template_digest[:12]})"


def _decision_failure(stack_digest: str, decision: str | None, state: State) -> str | None:
    expected = f"expected a passing decision for stack {stack_digest[:12]}"
    if decision is None:
        return f"{expected}, found no decision"
    found = state.decisions.get(decision)
    if not isinstance(found, Mapping):
        return f"{expected}, found that decision {decision[:12]} is missing or damaged in the store"
    if found.get("passed") is not True:
        reasons = "; ".join(str(reason) for reason in found.get("reasons") or ()) or "no reasons given"
        return f"{expected}, found decision {decision[:12]} that did not pass ({reasons})"
    if found.get("stack_digest") != stack_digest:
        return f"{expected}, found decision {decision[:12]} for stack {str(found.get('stack_digest'))[:12]}"
    return None


def _check_there(state: State, name: str, version: int) -> None:
    if state.last is None or not 0 <= version <= state.last.version:
        newest = "no version" if state.last is None else f"versions 0 to {state.last.version}"
        raise CommitError(f"{name}: expected to move it to a version that exists, found {version} of {newest}")


def _check_chain(state: State, snapshot: Snapshot) -> None:
    version = 0 if state.last is None else state.last.version + 1
    previous = None if state.last is None else state.last.hash
    if (snapshot.version, snapshot.previous_hash) != (version, previous):
        raise CommitError(
            f"expected version {version} chained to {str(previous)[:12]}, "
            f"found version {snapshot.version} chained to {str(snapshot.previous_hash)[:12]}"
        )
    if snapshot.hash != body_hash(snapshot.body):
        raise CommitError(f"version {snapshot.version}: expected its hash to cover its fields, found another one")


def check_suite(pinned: Mapping[tuple[str, int], str], suite: RecordSuite) -> None:
    """Raises SuiteError for other content than this version of the suite was pinned with."""
    known = pinned.get((suite.name, suite.version))
    if known is not None and known != suite.digest:
        raise SuiteError(
            f"suite {suite.name} version {suite.version}: expected content {known}, found {suite.digest}. "
            "It was changed without a new version: raise `version` in its suite.yaml, or undo the change."
        )


def _version(version: int | None) -> str:
    return "absent" if version is None else f"version {version}"
