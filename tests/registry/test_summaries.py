from __future__ import annotations

from incremental_llm.registry import SnapshotSummary


def test_summaries_say_what_the_snapshots_say(world):
    world.night(note="first")
    world.night()
    world.registry.rollback(1, "x")
    every = tuple(SnapshotSummary.of(snapshot) for snapshot in world.registry.list())
    assert world.registry.summaries() == every
    assert world.registry.summaries(2) == every[-2:]
    assert (every[1].note, every[3].restores, every[2].adapters) == ("first", 1, 2)
