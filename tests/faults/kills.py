"""kill -9 at system calls of an operation, and again at those of recovering from it."""

from __future__ import annotations

from pathlib import Path

from . import strace
from .laboratory import Laboratory, Tally, spread
from .worker import Ending, Order


def kill_everywhere(laboratory: Laboratory, name: str, most: int, tally: Tally) -> None:
    """Kill the operation before each of its durable calls (or `most` of them), and check what is left."""
    with laboratory.copy(name) as root:
        points = laboratory.trace(name, root)
    for point in spread(points, most):
        with laboratory.copy(name) as root:
            ending = laboratory.inject(Order(name, str(root), traced=True), strace.kill_at(point))
            verdict = laboratory.check(name, root, ending)
        if ending is Ending.KILLED:
            tally.add(f"{name}: killed at {point.text}", ending, verdict)


def kill_recovery(laboratory: Laboratory, name: str, kills: int, most: int, tally: Tally) -> None:
    """Kill the operation at `kills` places, and after each the recovery at each of its calls, or `most` of them."""
    with laboratory.copy(name) as root:
        points = laboratory.trace(name, root)
    for point in spread(points, kills):
        with laboratory.copy(name) as left:
            if laboratory.inject(Order(name, str(left), traced=True), strace.kill_at(point)) is Ending.KILLED:
                _kill_while_recovering(laboratory, name, left, point.text, most, tally)


def _kill_while_recovering(laboratory: Laboratory, name: str, left: Path, place: str, most: int, tally: Tally) -> None:
    with laboratory.copy_of(left) as root:
        points = laboratory.trace(name, root, step="recover")
    for point in spread(points, most):
        with laboratory.copy_of(left) as root:
            ending = laboratory.inject(Order(name, str(root), "recover", traced=True), strace.kill_at(point))
            verdict = laboratory.check(name, root, ending)
        if ending is Ending.KILLED:
            tally.add(f"{name}: killed at {place}, and recovering at {point.text}", ending, verdict)
