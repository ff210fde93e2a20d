"""kill -9 anywhere: never torn, nothing acknowledged is lost, and the next opening puts it right."""

from __future__ import annotations

import pytest

from . import kills
from .laboratory import Laboratory, Tally
from .operations import OPERATIONS
from .worker import Ending, Order

POINTS = {
    "commit": 10,
    "rollback": 5,
    "promote": 4,
    "refuse": 3,
    "create": 3,
    "erase": 6,
    "upgrade": 4,
    "checkpoint": 3,
}
"""How many of its system calls the default run kills an operation at; `make faults` does it at all of them."""


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_a_system_call(laboratory: Laboratory, traced: None, name: str) -> None:
    tally = Tally()
    kills.kill_everywhere(laboratory, name, POINTS.get(name, 2), tally)
    assert tally.faults and not tally.breaches, str(tally)


@pytest.mark.parametrize("name", ["commit", "erase"])
def test_killed_again_while_recovering(laboratory: Laboratory, traced: None, name: str) -> None:
    tally = Tally()
    kills.kill_recovery(laboratory, name, 1, 2, tally)
    assert tally.faults and not tally.breaches, str(tally)


@pytest.mark.parametrize("point", ["object staged", "object published", "before write 1", "committing", "committed"])
def test_killed_at_a_failpoint(laboratory: Laboratory, point: str) -> None:
    """What is left to do where there is no strace."""
    with laboratory.copy("commit") as root:
        ending = laboratory.worker.run(Order("commit", str(root), failpoint=point))
        verdict = laboratory.check("commit", root, ending)
    assert ending is Ending.KILLED and verdict.breaches == []
