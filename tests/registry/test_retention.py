"""Nothing that is needed goes, at whatever step a collection ends and whoever commits meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from incremental_llm.errors import InputError, IntegrityError, PendingErasureError, PreconditionFailed
from incremental_llm.registry import Erasure, Snapshot
from incremental_llm.registry import retention as retention_module

NOW, DAY = timedelta(0), timedelta(hours=24)


def age(world, hours: float = 48) -> None:
    """Make all that lies there look as if it had been put so long ago."""
    then = time.time() - hours * 3600
    for path in sorted(world.registry.objects.rglob("*"), reverse=True):
        os.utime(path, (then, then))


def held(world) -> set[str]:
    return {path.name for path in world.registry.objects.iterdir()}


@pytest.fixture
def lived(world):
    """Two versions with all parts, one rolled back, a rejected attempt, a tag; and an orphan, all two days old."""
    parts = {part: world.registry.put_json([part]) for part in ("replay", "corrections", "report", "recipe")}
    world.night(**parts, dataset=world.registry.put_object(world.folder("data")))
    world.night()
    world.registry.rollback(1, "x")
    world.rejected(range(21, 24))
    world.registry.tag("kept", 2)
    world.needed = held(world)
    world.orphan = world.registry.put_object(world.folder("of a killed run"))
    age(world)
    return world


def test_what_nobody_refers_to_goes_and_nothing_else(lived):
    planned = lived.registry.plan_gc()
    assert [one.name for one in planned.garbage] == [lived.orphan]
    assert "no version or attempt has it, unused since" in planned.garbage[0].why
    assert lived.orphan in held(lived)  # a plan changes nothing
    assert lived.registry.gc() == planned
    assert held(lived) == lived.needed
    assert lived.registry.verify() == []
    assert lived.registry.gc().garbage == ()


def test_what_was_put_lately_stays_and_putting_again_counts(lived):
    again = lived.registry.put_object(lived.folder("of a killed run"))
    assert again == lived.orphan
    fresh = lived.registry.put_json({"fresh": True})
    found = lived.registry.gc(DAY)
    assert {one.name for one in found.young} == {again, f"{fresh}.json"}
    assert found.garbage == ()
    assert {one.name for one in lived.registry.gc(NOW).garbage} == {again, f"{fresh}.json"}
    with pytest.raises(InputError, match="0 or more"):
        lived.registry.gc(timedelta(hours=-1))


def test_unfinished_folders_go_and_foreign_files_stay(lived):
    (lived.registry.objects / f".{'a' * 64}.1.tmp" / "deep").mkdir(parents=True)
    (lived.registry.objects / f".{'a' * 64}.1.tmp" / "deep" / "part").write_text("x" * 10)
    (lived.registry.objects / "notes.txt").write_text("mine")
    assert [one.bytes for one in lived.registry.plan_gc(DAY).young] == [10]
    age(lived)
    found = lived.registry.gc(DAY)
    assert found.foreign == ("notes.txt",)
    assert held(lived) == {*lived.needed, "notes.txt"}


def test_nothing_goes_while_nobody_can_say_what_is_needed(lived):
    lived.change("update snapshots set body = '{}' where version = 1")
    with pytest.raises(IntegrityError, match="expected hash"):
        lived.registry.gc(NOW)
    assert held(lived) == {*lived.needed, lived.orphan}


def test_an_erasure_that_has_not_ended_is_waited_for(lived):
    lived.registry.erasing().record(Erasure(id="e1", person="erased-1", begun=lived.registry.head().time))
    with pytest.raises(PendingErasureError):
        lived.registry.gc(NOW)
    assert lived.orphan in held(lived)


def test_what_stands_in_the_place_of_an_erased_object_is_needed(lived):
    other = lived.registry.put_json(["without him"])
    lived.registry.erasing().replace(lived.registry.head().replay, other, "e1")
    age(lived)
    assert [one.name for one in lived.registry.gc(NOW).garbage] == [lived.orphan]
    assert lived.registry.get_json(lived.registry.head().replay) == ["without him"]


@pytest.mark.parametrize("point", ["collecting", "object set aside", "object removed"])
def test_a_failure_leaves_every_object_whole_or_absent(lived, point):
    second = lived.registry.put_json({"another": "orphan"})
    age(lived)

    def fail(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        lived.open(failpoint=fail).gc()
    assert lived.registry.verify() == []
    for digest in (lived.orphan, second):
        if digest in lived.registry._objects:
            lived.registry.object_path(digest, verified=True)
    lived.registry.gc()
    assert held(lived) == lived.needed


KILLED = """
    import os, sys
    from pathlib import Path
    from incremental_llm.registry import Registry

    url = os.environ.get("REGISTRY_URL")
    Registry.open(Path(sys.argv[1]), url=url, failpoint=lambda name: os._exit(9) if name == sys.argv[2] else None).gc()
"""


def test_a_collection_that_was_killed_ends_with_the_next(lived):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), lived.root / "registry", "object set aside"]
    assert subprocess.run(command, check=False, cwd=Path.cwd(), env=lived.environment).returncode == 9
    assert lived.registry.verify() == []
    assert lived.orphan not in held(lived)
    lived.registry.gc()
    assert held(lived) == lived.needed


def test_what_is_put_between_the_look_and_the_removal_stays(lived, monkeypatch):
    """The window of a collector: it has seen an old object, and somebody puts it before it is renamed."""
    real = retention_module._set_aside

    def late(objects, one):
        lived.registry.put_object(lived.folder("of a killed run"))
        return real(objects, one)

    monkeypatch.setattr(retention_module, "_set_aside", late)
    assert lived.registry.gc().garbage == ()
    lived.registry.object_path(lived.orphan, verified=True)
    assert held(lived) == {*lived.needed, lived.orphan}


def test_an_object_that_goes_under_its_reader_is_stored_anew(lived, monkeypatch):
    """The window of a putter: the object was there when it looked, and is gone when it marks it as used."""
    real = lived.registry._objects.path
    gone: list[str] = []

    def path(digest: str) -> Path:
        found = real(digest)
        if not gone:
            gone.append(digest)
            lived.registry._objects.discard(digest)
        return found

    monkeypatch.setattr(lived.registry._objects, "path", path)
    assert lived.registry.put_object(lived.folder("of a killed run")) == lived.orphan == gone[0]
    lived.registry.object_path(lived.orphan, verified=True)


def test_a_commit_after_its_object_was_collected_is_refused(lived):
    stack = lived.candidate(lived.registry.head())
    decision = lived.decision(stack)
    lived.registry.gc(NOW)
    with pytest.raises(PreconditionFailed, match="found no whole"):
        lived.registry.commit_increment(parent=3, stack=stack, cursor=99, decision=decision)
    assert lived.registry.verify() == []


def test_collectors_against_committers_and_readers(lived):
    """With the grace that a run needs, no commit fails and no reader misses anything, however often gc runs."""
    stop, problems = threading.Event(), []

    def collecting() -> None:
        with lived.open() as registry:
            while not stop.is_set():
                registry.gc(timedelta(seconds=30))

    def reading() -> None:
        with lived.open() as registry:
            while not stop.is_set():
                head = registry.head()
                try:
                    for digest in head.objects:
                        registry.object_path(digest, verified=True)
                except IntegrityError as error:
                    problems.append(error)

    threads = [threading.Thread(target=run) for run in (collecting, collecting, reading)]
    for thread in threads:
        thread.start()
    made = [lived.night() for _ in range(8)]
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert all(isinstance(one, Snapshot) for one in made)
    assert lived.registry.verify() == []


def test_usage_counts_every_byte_once_by_kind(lived):
    usage = lived.registry.du()
    kinds = {one.kind: one for one in usage.kinds}
    assert {kind: one.objects for kind, one in kinds.items()} == {
        "adapter": 2,
        "replay": 1,
        "corrections": 1,
        "dataset": 1,
        "report": 1,
        "recipe": 1,
        "decision": 3,
        "unreferenced": 1,
    }
    files = [path for path in lived.registry.objects.rglob("*") if path.is_file()]
    assert usage.objects == sum(one.bytes for one in usage.kinds) == sum(path.stat().st_size for path in files)
    assert usage.garbage == kinds["unreferenced"].bytes > 0
    assert (usage.database > 0) == (lived.url is None)


def test_usage_of_a_version_is_its_own_and_what_it_shares(lived):
    by_version = {one.version: one for one in lived.registry.du().versions}
    assert (by_version[0].own, by_version[0].shared) == (0, 0)
    assert by_version[2].own > 0  # its adapter and its decision, which the rollback undid
    assert by_version[2].shared > 0  # the first adapter
    assert (by_version[3].own, by_version[3].missing) == (0, 0)
    head = lived.registry.head()
    lived.registry.object_path(head.replay).unlink()
    assert {one.version: one.missing for one in lived.registry.du().versions} == {0: 0, 1: 1, 2: 0, 3: 1}
