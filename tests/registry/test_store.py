from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import incremental_llm.registry
from incremental_llm.adapters.stack import BaseRef, Stack, adapter_paths
from incremental_llm.errors import (
    BaseModelError,
    CommitError,
    InputError,
    IntegrityError,
    PreconditionFailed,
    SuiteError,
    UnknownRefError,
)
from incremental_llm.registry import Registry, attempt_key


def test_front_page_runs():
    assert doctest.testmod(incremental_llm.registry, optionflags=doctest.ELLIPSIS).failed == 0


def test_importing_it_loads_no_torch():
    code = "import incremental_llm.registry, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist():
    assert all(hasattr(incremental_llm.registry, name) for name in incremental_llm.registry.__all__)


# create and open


def test_a_new_registry_has_the_base_in_production(world):
    head = world.registry.head()
    assert (head.version, head.kind, head.stack, head.cursor) == (0, "init", world.base, 0)
    assert world.registry.refs() == {"production": 0}
    assert world.registry.verify() == []


def test_creating_twice_or_with_adapters_is_refused_and_changes_nothing(world):
    with pytest.raises(InputError, match="found one"):
        Registry.create(world.root / "registry", world.base, url=world.url)
    with pytest.raises(InputError, match="found 1"):
        Registry.create(world.root / "other", world.base.plus("a" * 64))
    assert not (world.root / "other").exists()
    assert len(world.registry.list()) == 1


def test_opening_needs_a_registry(tmp_path):
    with pytest.raises(InputError, match="found none"):
        Registry.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "registry.db").touch()
    with pytest.raises(InputError, match="empty database"):
        Registry.open(tmp_path)


def test_a_file_that_is_no_database_is_an_integrity_error(tmp_path):
    (tmp_path / "registry.db").write_bytes(b"no database " * 100)
    with pytest.raises(IntegrityError, match="damaged"):
        Registry.open(tmp_path)


@pytest.mark.parametrize("field", ["digest", "template_digest"])
def test_another_base_is_refused_with_both_digests(world, field):
    other = world.base.base.model_copy(update={field: "c" * 64})
    with pytest.raises(BaseModelError, match=r"bababababa.*cccccccc"):
        Registry.open(world.root / "registry", url=world.url, base=other)


def test_the_same_base_under_another_name_opens(world):
    other = world.base.base.model_copy(update={"name": "/some/folder"})
    with Registry.open(world.root / "registry", url=world.url, base=other) as registry:
        assert registry.head().version == 0


@pytest.mark.sqlite
def test_sqlite_is_durable_and_logs_ahead(world):
    with world.registry._read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.sqlite
def test_a_database_by_url(tmp_path, world):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    with Registry.create(tmp_path / "two", world.base, url=url) as registry:
        assert registry.head().version == 0
    with Registry.open(tmp_path / "two", url=url) as registry:
        assert registry.verify() == []
    assert not (tmp_path / "two" / "registry.db").exists()


# commit


def test_an_increment_is_the_next_version_and_production(world):
    replay, corrections = world.registry.put_object(world.folder("replay")), world.registry.put_json([])
    snapshot = world.night(events=7, replay=replay, corrections=corrections, attempt="run", note="first night")
    assert (snapshot.version, snapshot.parent, snapshot.cursor, snapshot.replay) == (1, 0, 7, replay)
    assert (
        world.registry.head()
        == world.registry.get(1)
        == world.registry.get("v1")
        == world.registry.get("1")
        == snapshot
    )
    assert world.registry.committed("run") == snapshot
    assert world.registry.committed("other") is None
    assert all(path.is_dir() for path in adapter_paths(snapshot.stack, world.registry.objects))
    assert [(m.before, m.after, m.reason) for m in world.registry.history()] == [
        (None, 0, "created"),
        (0, 1, "first night"),
    ]
    assert world.registry.verify() == []


def commit(world, stack: Stack, decision: str | None, **fields: object):
    return world.registry.commit_increment(**{"parent": 0, "stack": stack, "cursor": 5, "decision": decision, **fields})


@pytest.mark.parametrize("case", ["none", "absent", "refused", "other stack"])
def test_without_a_passing_decision_for_this_stack_nothing_is_committed(world, case):
    stack = world.candidate(world.registry.head())
    decision = {
        "none": None,
        "absent": "d" * 64,
        "refused": world.decision(stack, passed=False),
        "other stack": world.decision(world.base),
    }[case]
    with pytest.raises(PreconditionFailed, match=r"expected a passing decision for stack .* found"):
        commit(world, stack, decision)
    assert [s.version for s in world.registry.list()] == [0]
    assert world.registry.refs() == {"production": 0}


def test_a_job_that_lost_the_race_is_told_what_it_expected_and_found(world):
    stack = world.candidate(world.registry.head())
    world.night()
    with pytest.raises(PreconditionFailed, match="expected production to be version 0, found version 1"):
        commit(world, stack, world.decision(stack))
    assert len(world.registry.list()) == 2


def test_a_stack_must_extend_its_parent_and_a_cursor_never_goes_back(world):
    world.night(events=5)
    stack = world.candidate(world.registry.get(0))
    below = stack.model_copy(update={"adapters": (*stack.adapters, *world.registry.head().stack.adapters)})
    with pytest.raises(PreconditionFailed, match="does not extend"):
        commit(world, below, world.decision(below), parent=1)
    stack = world.candidate(world.registry.head())
    with pytest.raises(PreconditionFailed, match="cursor of at least 5"):
        commit(world, stack, world.decision(stack), parent=1, cursor=4)


def test_one_new_adapter_may_take_the_place_of_all(world):
    world.night(), world.night()
    stack = world.candidate(world.registry.get(0))
    assert commit(world, stack, world.decision(stack), parent=2, cursor=20, replaces=2).stack.adapters == stack.adapters


def test_an_adapter_that_was_not_stored_and_another_base_are_refused(world):
    stack = world.base.plus("e" * 64)
    with pytest.raises(PreconditionFailed, match="found no whole eeee"):
        commit(world, stack, world.decision(stack))
    stack = world.candidate(world.registry.head())
    stack = stack.model_copy(update={"base": stack.base.model_copy(update={"digest": "c" * 64})})
    with pytest.raises(PreconditionFailed, match="expected a stack on base tiny"):
        commit(world, stack, world.decision(stack))


def test_an_attempt_is_committed_once(world):
    world.night(attempt="run")
    with pytest.raises(PreconditionFailed, match="expected attempt run to be new, found it as version 1"):
        world.night(attempt="run")


def test_a_canary_moves_alone_and_its_verdict_moves_production(world):
    snapshot = world.night(ref="canary")
    assert world.registry.refs() == {"canary": 1, "production": 0}
    assert world.registry.promote("canary", expected=0) == snapshot
    assert world.registry.refs() == {"canary": 1, "production": 1}


def test_other_refs_cannot_be_invented_by_a_typo(world):
    with pytest.raises(InputError, match="did you mean 'production'"):
        world.night(ref="producton")


def test_a_bad_value_is_a_commit_error_and_changes_nothing(world):
    with pytest.raises(CommitError, match="nothing was changed"):
        world.night(dataset=3)
    assert len(world.registry.list()) == 1


# reading


def test_unknown_refs_name_the_nearest(world):
    with pytest.raises(UnknownRefError, match="did you mean 'production'"):
        world.registry.get("prodction")
    with pytest.raises(UnknownRefError, match="version 4: expected one of 0 to 0"):
        world.registry.get("v4")
    with pytest.raises(UnknownRefError, match="at most 18 digits, found 23"):
        world.registry.get("9" * 23)
    with pytest.raises(UnknownRefError):
        world.registry.history("canary")


# promote and rollback


def test_promote_moves_production_to_a_version_that_passed(world):
    world.night()
    world.night()
    assert world.registry.promote(1).version == 1
    assert world.registry.promote(0).version == 0
    assert [move.after for move in world.registry.history()] == [0, 1, 2, 1, 0]
    with pytest.raises(PreconditionFailed, match="expected production to be version 2, found version 0"):
        world.registry.promote(1, expected=2)
    assert world.registry.verify() == []


def test_promote_refuses_when_the_decision_is_gone(world):
    decision = world.night().decision
    world.registry.promote(0)
    world.registry.object_path(decision).unlink()
    with pytest.raises(PreconditionFailed, match="missing or damaged"):
        world.registry.promote(1)
    with pytest.raises(PreconditionFailed, match="missing or damaged"):
        world.registry.rollback(1, "x")


def test_rollback_is_a_new_version_with_the_world_of_the_target(world):
    replay = world.registry.put_object(world.folder("replay"))
    target = world.night(events=10, replay=replay, corrections=world.registry.put_json([1]))
    world.night(events=5)
    world.night(events=5)
    back = world.registry.rollback("v1", "answers became rude")
    kept = ("stack", "replay", "corrections", "cursor", "decision", "report")
    assert all(getattr(back, name) == getattr(target, name) for name in kept)
    assert (back.version, back.kind, back.parent, back.restores, back.dataset) == (4, "rollback", 3, 1, None)
    assert world.registry.head() == back
    assert world.registry.quarantined() == set(range(11, 21))
    reasons = {q.seq: (q.reason, q.version) for q in world.registry.quarantine()}
    assert reasons[11] == ("increment 2 was rolled back: answers became rude", 4)
    assert reasons[20] == ("increment 3 was rolled back: answers became rude", 4)
    assert world.registry.verify() == []


def test_rollback_to_the_base_and_forward_again(world):
    world.night(events=3)
    assert world.registry.rollback(0, "bad").stack == world.base
    forward = world.registry.rollback(1, "it was fine")
    assert (forward.version, forward.cursor) == (3, 3)
    assert world.registry.quarantined() == {1, 2, 3}
    assert world.registry.verify() == []


def test_rolling_back_to_where_production_is_says_so(world):
    world.night()
    with pytest.raises(InputError, match="is that state already"):
        world.registry.rollback(1, "x")
    world.registry.rollback(0, "x")
    with pytest.raises(InputError, match="is that state already"):
        world.registry.rollback(0, "x")
    assert len(world.registry.list()) == 3


# rejected attempts


def test_a_rejected_attempt_has_no_version_and_keeps_its_events(world):
    attempt = world.rejected(range(1, 5), seed=3)
    assert attempt.id == attempt_key([1, 2, 3, 4], None, 0, 3)
    assert (attempt.first_seq, attempt.last_seq, attempt.status) == (1, 4, "rejected")
    assert world.registry.attempts() == (attempt,)
    assert world.registry.quarantined() == frozenset()
    assert [s.version for s in world.registry.list()] == [0]
    assert world.registry.verify() == []


def test_a_second_rejection_quarantines_the_events_of_the_first(world):
    world.rejected(range(1, 5))
    second = world.rejected(range(1, 9))
    assert world.registry.quarantined() == {1, 2, 3, 4}
    assert {q.attempt for q in world.registry.quarantine()} == {second.id}
    assert "two rejected attempts" in world.registry.quarantine()[0].reason
    world.rejected(range(5, 11))
    assert world.registry.quarantined() == set(range(1, 9))


def test_an_interrupted_run_that_reports_again_counts_once(world):
    first = world.rejected(range(1, 5))
    assert world.rejected(range(1, 5)) == first
    assert sum(1 in attempt.seqs for attempt in world.registry.attempts()) == 1
    assert world.registry.quarantined() == frozenset()


def test_no_attempt_yet(world):
    assert world.registry.attempts() == ()
    assert world.registry.attempts() == ()


def test_a_candidate_that_passed_or_was_committed_is_no_rejection(world):
    stack = world.candidate(world.registry.head())
    with pytest.raises(PreconditionFailed, match="passed: commit its candidate"):
        world.registry.record_attempt(parent=0, seqs=[1], reason="x", decision=world.decision(stack))
    world.night(attempt=attempt_key([1], None, 0, 0))
    with pytest.raises(PreconditionFailed, match="found it as version 1"):
        world.registry.record_attempt(parent=0, seqs=[1], reason="x")


def test_an_attempt_needs_events_and_a_parent(world):
    with pytest.raises(InputError, match="found none"):
        world.registry.record_attempt(parent=0, seqs=[], reason="x")
    with pytest.raises(UnknownRefError, match="version 7"):
        world.registry.record_attempt(parent=7, seqs=[1], reason="x")


# suites


def test_a_suite_is_pinned_at_first_sight(world):
    world.registry.record_suite("general", 1, "a" * 64)
    world.registry.record_suite("general", 1, "a" * 64)
    world.registry.record_suite("general", 2, "b" * 64)
    with pytest.raises(SuiteError, match="without a new version"):
        world.registry.record_suite("general", 1, "b" * 64)
    assert world.registry.suites() == {("general", 1): "a" * 64, ("general", 2): "b" * 64}


def test_a_quantised_stack_is_another_one_and_an_unquantised_is_written_as_ever():
    plain = Stack(base=BaseRef(name="b", digest="d", template_digest="t"), adapters=("a",))
    packed = plain.model_copy(update={"quantization": "nf4"})
    assert "quantization" not in plain.model_dump(mode="json")
    assert plain.digest != packed.digest
    for stack in (plain, packed):
        assert Stack.model_validate(stack.model_dump(mode="json")) == stack
