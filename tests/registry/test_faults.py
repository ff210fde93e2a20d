"""A failure at any step leaves the old state or the new one, never one between, and says which it may be."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from incremental_llm.errors import CommitError, CommitStateUnknown, PreconditionFailed
from incremental_llm.registry import Registry, Snapshot

STAGING = ["object staged", "object published"]
WRITING = ["begun", "before write 0", "before write 1", "before write 2", "before commit"]
BEFORE = [*STAGING, *WRITING]
DURING = ["committing", "committed"]


class Fault:
    """Raises at one step; `seen` lists the steps that were passed."""

    def __init__(self, point: str | None = None) -> None:
        self.point = point
        self.seen: list[str] = []

    def __call__(self, name: str) -> None:
        self.seen.append(name)
        if name == self.point:
            raise OSError(28, "No space left on device")


def world_of(registry: Registry) -> tuple[object, ...]:
    return registry.list(), registry.refs(), registry.quarantine(), registry.attempts(), registry.sightings("e1")


def failing(world, point: str) -> Registry:
    return world.open(failpoint=Fault(point))


def one_commit(world, registry: Registry, folder: Path) -> Snapshot:
    stack = registry.head().stack.plus(registry.put_object(folder))
    decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
    return registry.commit_increment(parent=0, stack=stack, cursor=9, decision=decision, attempt="run")


def test_the_list_of_steps_is_complete(world):
    fault = Fault()
    one_commit(world, world.open(failpoint=fault), world.folder("x"))
    assert list(dict.fromkeys(fault.seen)) == BEFORE + DURING


@pytest.mark.parametrize("point", BEFORE)
def test_a_failure_before_the_commit_changes_nothing_and_may_be_retried(world, point):
    before, folder = world_of(world.registry), world.folder("x")
    with pytest.raises(OSError if point.startswith("object") else CommitError, match="No space"):
        one_commit(world, failing(world, point), folder)
    assert world_of(world.registry) == before
    assert world.registry.verify() == []
    assert one_commit(world, world.registry, folder).version == 1


@pytest.mark.parametrize(("point", "committed"), [("committing", False), ("committed", True)])
def test_a_failure_in_the_commit_is_unknown_until_asked(world, point, committed):
    with pytest.raises(CommitStateUnknown, match="may or may not"):
        one_commit(world, failing(world, point), world.folder("x"))
    assert (world.registry.committed("run") is not None) == committed
    assert world.registry.head().version == int(committed)
    assert world.registry.verify() == []


@pytest.mark.parametrize("point", [*WRITING, *DURING])
def test_rollback_is_whole_or_absent(world, point):
    world.night(events=3)
    before = world_of(world.registry)
    with pytest.raises(CommitError):
        failing(world, point).rollback(0, "x")
    if point == "committed":
        assert (world.registry.head().version, world.registry.quarantined()) == (2, {1, 2, 3})
    else:
        assert world_of(world.registry) == before
    assert world.registry.verify() == []


@pytest.mark.parametrize("point", [*WRITING, *DURING])
def test_a_second_rejection_and_its_quarantine_are_one(world, point):
    world.rejected(range(1, 4))
    before, registry = world_of(world.registry), failing(world, point)
    with pytest.raises(CommitError):
        registry.record_attempt(parent=0, seqs=range(1, 6), reason="worse")
    if point == "committed":
        assert world.registry.quarantined() == {1, 2, 3}
    else:
        assert world_of(world.registry) == before
    world.registry.record_attempt(parent=0, seqs=range(1, 6), reason="worse")  # run again: counted once either way
    assert (world.registry.quarantined(), sum(5 in attempt.seqs for attempt in world.registry.attempts())) == (
        {1, 2, 3},
        1,
    )


def test_a_failed_creation_can_be_made_again(tmp_path, world):
    for point in ("begun", "before write 0", "before write 1", "before commit", "committing"):
        with pytest.raises(CommitError):
            Registry.create(tmp_path / "new", world.base, failpoint=Fault(point))
    assert Registry.create(tmp_path / "new", world.base).verify() == []


KILLED = """
    import os, sys
    from pathlib import Path
    from incremental_llm.registry import Registry

    root, adapter, url = Path(sys.argv[1]), Path(sys.argv[2]), os.environ.get("REGISTRY_URL")
    for point in sys.argv[3:]:
        child = os.fork()
        if child == 0:
            registry = Registry.open(root, url=url, failpoint=lambda name: os._exit(9) if name == point else None)
            head = registry.head()
            (adapter / "adapter_model.safetensors").write_text(point)
            stack = head.stack.plus(registry.put_object(adapter))
            decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
            registry.commit_increment(parent=head.version, stack=stack, cursor=head.cursor + 1, decision=decision)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with Registry.open(root, url=url) as registry:
            print(point, status, registry.head().version, registry.verify(), sep="|")
"""


def test_a_process_killed_at_any_step_leaves_the_old_or_the_new_state(world):
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        world.root / "registry",
        world.folder("x"),
        *BEFORE,
        *DURING,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd(), env=world.environment)
    expected = [f"{point}|9|0|[]" for point in [*BEFORE, "committing"]] + ["committed|9|1|[]"]
    assert done.stdout.splitlines() == expected


def test_of_jobs_that_race_exactly_one_wins(world):
    stacks = [world.candidate(world.registry.head()) for _ in range(4)]
    decisions = [world.decision(stack) for stack in stacks]
    start, results = threading.Barrier(4), []

    def job(stack, decision) -> None:
        with world.open() as registry:
            start.wait()
            try:
                results.append(registry.commit_increment(parent=0, stack=stack, cursor=1, decision=decision))
            except PreconditionFailed as error:
                results.append(error)

    threads = [threading.Thread(target=job, args=pair) for pair in zip(stacks, decisions, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [result for result in results if isinstance(result, Snapshot)]
    lost = [str(result) for result in results if isinstance(result, PreconditionFailed)]
    assert (len(won), len(lost)) == (1, 3)
    assert all("expected production to be version 0, found version 1" in text for text in lost)
    assert world.registry.list()[1:] == tuple(won)
    assert world.registry.verify() == []


def test_a_reader_sees_one_state_while_another_commits(world):
    with world.registry._read() as connection:
        before = connection.exec_driver_sql("select count(*) from snapshots").scalar()
        world.night()
        assert connection.exec_driver_sql("select count(*) from snapshots").scalar() == before
    assert len(world.registry.list()) == 2
