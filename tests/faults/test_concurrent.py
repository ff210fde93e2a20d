"""Processes at once: no commit is lost or doubled, moves have one order, a reader sees one version."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .concurrent import histories, lost_or_doubled, not_linearizable
from .laboratory import Laboratory
from .worker import Ending, Order
from .world import night, open_registry


def act(laboratory: Laboratory, root: Path, role: str, workers: range, count: int) -> list[int]:
    """Begin a role in several processes."""
    return [
        laboratory.worker.start(
            Order(role, str(root), "act", worker=worker, count=count, errors=str(root / f"errors-{worker}.txt"))
        )
        for worker in workers
    ]


def all_done(laboratory: Laboratory, root: Path, children: list[int]) -> None:
    endings = [laboratory.worker.wait(child) for child in children]
    assert set(endings) == {Ending.DONE}, [path.read_text(encoding="utf-8") for path in root.glob("errors-*.txt")]


def test_commits_at_once_are_dense_and_none_is_lost_or_doubled(laboratory: Laboratory) -> None:
    with laboratory.copy("commit") as root:
        all_done(laboratory, root, act(laboratory, root, "commit_many", range(3), 4))
        with open_registry(root) as registry:
            assert lost_or_doubled(histories(root, "commits"), registry.list(), first=3) == []
            assert len(registry.list()) == 3 + 12 and registry.verify() == []


def test_promotions_and_reads_at_once_have_one_order(laboratory: Laboratory) -> None:
    with laboratory.copy("promote") as root:
        readers = act(laboratory, root, "read_until", range(1), 5)
        all_done(laboratory, root, act(laboratory, root, "promote_many", range(3), 8))
        (root / "stop").touch()
        all_done(laboratory, root, readers)
        promotions, reads = histories(root, "promotions"), histories(root, "reads")
        with open_registry(root) as registry:
            assert not_linearizable(registry.history(), promotions, reads) == []
            assert registry.verify() == []
        assert (root / "mixed-0.json").read_text(encoding="utf-8") == "0"
        assert sum(step.version is not None for step in promotions) >= 8


def test_who_is_killed_with_the_lock_in_his_hand_blocks_nobody(laboratory: Laboratory) -> None:
    with laboratory.copy("commit") as root:
        child = laboratory.worker.start(Order("commit", str(root), "hold", failpoint="before commit"))
        while not (root / "holding").exists():
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        assert laboratory.worker.wait(child) is Ending.KILLED
        with open_registry(root) as registry:
            assert night(registry, 7, root / "next").version == 3 and registry.verify() == []
