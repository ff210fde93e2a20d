"""What a copy has comes back by its digest; what it has not stays as it is, and is said."""

from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta

import pytest

from incremental_llm.errors import InputError

DAY = timedelta(hours=24)


@pytest.fixture
def copied(world):
    """Two versions, and a copy of their objects."""
    world.night(replay=world.registry.put_json(["replay"]))
    world.night()
    shutil.copytree(world.registry.objects, world.root / "copy" / "objects")
    return world


def damage(world) -> None:
    """One adapter with another byte, a replay buffer that is gone."""
    head = world.registry.head()
    (world.registry.object_path(head.stack.adapters[0]) / "adapter_model.safetensors").write_text("damaged")
    world.registry.object_path(world.registry.get(1).replay).unlink()
    assert len(world.registry.verify()) == 2


def test_damaged_and_missing_objects_come_back_from_a_copy(copied):
    damage(copied)
    planned = copied.registry.plan_repair(copied.root / "copy")
    assert {one.action for one in planned if one.subject.startswith("object")} == {"restore"}
    assert len(copied.registry.verify()) == 2  # a plan changes nothing
    done = copied.registry.repair(copied.root / "copy" / "objects")
    assert [one.action for one in done].count("restore") == 2
    assert copied.registry.verify() == []
    (kept,) = (copied.root / "registry" / "damaged").iterdir()
    assert (kept / "adapter_model.safetensors").read_text() == "damaged"  # it may have been all that was left
    assert [one for one in copied.registry.repair() if one.action != "fold in the log"] == []


def test_nothing_is_invented(copied):
    damage(copied)
    before = sorted(copied.registry.objects.rglob("*"))
    assert {one.action for one in copied.registry.repair() if one.subject.startswith("object")} == {"none"}
    broken = copied.root / "copy" / "objects" / copied.registry.head().stack.adapters[0]
    (broken / "adapter_model.safetensors").write_text("damaged too")
    (copied.root / "copy" / "objects" / f"{copied.registry.get(1).replay}.json").write_text('["another"]')
    done = [one for one in copied.registry.repair(copied.root / "copy") if one.subject.startswith("object")]
    assert [one.action for one in done] == ["none", "none"]
    assert all("the copy has none that is whole" in one.note for one in done)
    assert sorted(copied.registry.objects.rglob("*")) == before
    with pytest.raises(InputError, match="found no folder"):
        copied.registry.repair(copied.root / "nowhere")


def test_unfinished_folders_go_when_they_are_old(copied):
    left = copied.registry.objects / f".{'a' * 64}.1.tmp"
    left.mkdir()
    assert [one for one in copied.registry.plan_repair() if one.action == "remove"] == []
    then = time.time() - 2 * DAY.total_seconds()
    os.utime(left, (then, then))
    assert [one.subject for one in copied.registry.repair() if one.action == "remove"] == [left.name]
    assert not left.exists()


@pytest.mark.parametrize("point", ["damaged object kept", "object staged", "object published", "object restored"])
def test_a_failure_on_the_way_is_made_good_by_the_same_call(copied, point):
    damage(copied)

    def fail(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        copied.open(failpoint=fail).repair(copied.root / "copy")
    copied.registry.repair(copied.root / "copy")
    assert copied.registry.verify() == []


def test_what_was_erased_does_not_come_back(copied):
    replay = copied.registry.get(1).replay
    copied.registry.erasing().replace(replay, None, "e1")
    assert [one for one in copied.registry.repair(copied.root / "copy") if one.action == "restore"] == []
    assert not (copied.registry.objects / f"{replay}.json").exists()
