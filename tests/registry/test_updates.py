from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.errors import CommitError, PreconditionFailed, SuiteError
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.updates import (
    AddSnapshot,
    BaseIs,
    DecisionPassedFor,
    MoveRef,
    QuarantineEvents,
    RecordSuite,
    RefIs,
    State,
    apply,
    check,
    failure,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BASE = BaseRef(name="tiny", digest="b", template_digest="t")
FIRST = Snapshot.sealed(version=0, kind="init", time=NOW, stack=Stack(base=BASE))
STATE = State(last=FIRST, refs={"production": 0}, snapshots={0: FIRST}, objects=frozenset({"a", "d"}))


def increment(**fields: object) -> Snapshot:
    fields = {"stack": FIRST.stack.plus("a"), "decision": "d", **fields}
    return Snapshot.after(FIRST, kind="increment", parent=0, time=NOW, **fields)


def decided(stack: Stack, **fields: object) -> State:
    return replace(STATE, decisions={"d": {"passed": True, "stack_digest": stack.digest, **fields}})


def test_apply_leaves_the_old_state_alone():
    after = apply(apply(STATE, AddSnapshot(snapshot=increment())), MoveRef(name="production", version=1))
    assert (after.refs, after.last) == ({"production": 1}, increment())
    assert (STATE.refs, STATE.last) == ({"production": 0}, FIRST)


@pytest.mark.parametrize("change", [{"version": 2}, {"previous_hash": "other"}, {"note": "edited after sealing"}])
def test_a_snapshot_that_is_not_the_next_link_is_refused(change):
    with pytest.raises(CommitError, match="expected"):
        apply(STATE, AddSnapshot(snapshot=increment().model_copy(update=change)))


def test_a_ref_moves_only_to_a_version_that_exists():
    with pytest.raises(CommitError, match="found 1 of versions 0 to 0"):
        apply(STATE, MoveRef(name="production", version=1))


def test_moving_production_implies_the_decision():
    snapshot = increment()
    updates = [AddSnapshot(snapshot=snapshot), MoveRef(name="production", version=1)]
    assert check(updates, [], decided(snapshot.stack)).refs == {"production": 1}
    with pytest.raises(PreconditionFailed, match="expected a passing decision"):
        check(updates, [], STATE)


@pytest.mark.parametrize(
    ("decision", "found"),
    [
        (None, "missing or damaged"),
        ({"passed": False, "reasons": ["general fell"]}, "did not pass .general fell."),
        ({"passed": 1}, "did not pass"),
        ({"passed": "true"}, "did not pass"),
        ({"stack_digest": "f" * 64}, "for stack ffff"),
        ({"stack_digest": None}, "for stack None"),
    ],
)
def test_a_decision_must_pass_for_exactly_this_stack(decision, found):
    snapshot = increment()
    state = STATE if decision is None else decided(snapshot.stack, **decision)
    with pytest.raises(PreconditionFailed, match=found):
        check([AddSnapshot(snapshot=snapshot), MoveRef(name="production", version=1)], [], state)


def test_no_decision_and_one_that_is_no_object_are_failures():
    assert "no decision" in (failure(DecisionPassedFor(stack_digest="s", decision=None), STATE) or "")
    assert "missing" in (
        failure(DecisionPassedFor(stack_digest="s", decision="d"), replace(STATE, decisions={"d": 1})) or ""
    )


def test_going_back_to_the_base_needs_no_decision():
    state = replace(STATE, refs={"production": 1}, last=increment(), snapshots={0: FIRST, 1: increment()})
    assert check([MoveRef(name="production", version=0)], [], state).refs == {"production": 0}


def test_all_failures_are_listed_with_expected_and_found():
    snapshot = increment(stack=Stack(base=BASE.model_copy(update={"digest": "x"})).plus("absent"), decision=None)
    with pytest.raises(PreconditionFailed) as caught:
        check([AddSnapshot(snapshot=snapshot)], [RefIs(name="production", version=7)], STATE)
    message = str(caught.value)
    assert "expected production to be version 7, found version 0" in message
    assert "absent" in message
    assert "expected a stack on base tiny" in message
    assert "no decision" in message


def test_a_base_is_its_digests_not_its_name():
    assert failure(BaseIs(base=BASE.model_copy(update={"name": "same weights elsewhere"})), STATE) is None
    assert failure(BaseIs(base=BASE.model_copy(update={"template_digest": "x"})), STATE) is not None


def test_a_suite_changed_without_a_new_version_names_both_digests():
    known = apply(STATE, RecordSuite(name="general", version=1, digest="one"))
    assert apply(known, RecordSuite(name="general", version=1, digest="one")) == known
    assert apply(known, RecordSuite(name="general", version=2, digest="two")).suites[("general", 2)] == "two"
    with pytest.raises(SuiteError, match=r"expected content one, found two\. .* raise `version`"):
        apply(known, RecordSuite(name="general", version=1, digest="two"))


def test_quarantine_adds_up():
    twice = apply(apply(STATE, QuarantineEvents(seqs=(1, 2), reason="x")), QuarantineEvents(seqs=(2, 3), reason="y"))
    assert twice.quarantined == {1, 2, 3}
