"""The same promises on PostgreSQL, where the disk is the server's business: kills, races, a dead lock holder, lives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .concurrent import histories, lost_or_doubled, not_linearizable
from .invariants import check, states_of
from .lives import Lives, live
from .operations import OPERATIONS
from .worker import Ending, Order, Worker
from .world import build, night, open_registry

Built = Callable[[str], Path]


pytestmark = pytest.mark.slow  # half a minute; `make faults` runs them


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as made:
        yield made


@pytest.fixture
def built(tmp_path: Path, postgres_schema: Callable[[], str]) -> Built:
    """A workspace of its own at every call, in a schema of its own."""

    def make(name: str) -> Path:
        build(tmp_path / name, postgres_schema())
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["commit", "rollback"])
def test_killed_at_a_failpoint(worker: Worker, built: Built, name: str) -> None:
    operation = OPERATIONS[name]
    allowed = states_of(operation, built("states"))
    for point in ("begun", "before write 1", "before commit", "committing", "committed"):
        root = built(point.replace(" ", "-"))
        ending = worker.run(Order(name, str(root), failpoint=point))
        assert ending is Ending.KILLED
        assert check(root, operation, allowed, ending).breaches == [], point


def test_commits_at_once_are_dense_and_none_is_lost_or_doubled(worker: Worker, built: Built) -> None:
    root = built("commits")
    _at_once(worker, root, "commit_many", 3, 4)
    with open_registry(root) as registry:
        assert lost_or_doubled(histories(root, "commits"), registry.list(), first=3) == []
        assert len(registry.list()) == 3 + 12 and registry.verify() == []


def test_promotions_at_once_have_one_order(worker: Worker, built: Built) -> None:
    root = built("promotions")
    _at_once(worker, root, "promote_many", 3, 6)
    with open_registry(root) as registry:
        assert not_linearizable(registry.history(), histories(root, "promotions"), []) == []


def test_who_is_killed_with_the_lock_in_his_hand_blocks_nobody(worker: Worker, built: Built) -> None:
    root = built("held")
    child = worker.start(Order("commit", str(root), "hold", failpoint="before commit"))
    while not (root / "holding").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert worker.wait(child) is Ending.KILLED
    with open_registry(root) as registry:
        assert night(registry, 7, root / "next").version == 3 and registry.verify() == []


def test_random_lives_agree_with_the_model(postgres_schema: Callable[[], str]) -> None:
    class OnServer(Lives):
        url = "a server's"

        def fresh_url(self) -> str:
            return postgres_schema()

    live(2, 10, OnServer)


def _at_once(worker: Worker, root: Path, role: str, processes: int, count: int) -> None:
    orders = [Order(role, str(root), "act", worker=number, count=count) for number in range(processes)]
    children = [worker.start(order) for order in orders]
    assert {worker.wait(child) for child in children} == {Ending.DONE}
