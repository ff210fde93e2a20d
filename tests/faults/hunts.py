"""For each planted bug the campaign that finds it, and whether it did."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from . import strace
from .concurrent import histories, lost_or_doubled, not_linearizable
from .corruption import KINDS, flip
from .laboratory import Laboratory, Tally, spread
from .power_loss import lose_power
from .worker import Ending
from .world import open_registry

Hunt = Callable[[Laboratory, str], bool]
"""Whether a campaign with this bug in its children found anything."""


def power_loss(name: str, most: int = 40) -> Hunt:
    """The power goes in the middle of an operation."""

    def hunt(laboratory: Laboratory, bug: str) -> bool:
        tally = Tally()
        lose_power(laboratory, name, most, tally, bug=bug)
        return bool(tally.breaches)

    return hunt


def kills(name: str, where: str = "", most: int = 40) -> Hunt:
    """The process is killed, at calls whose text has `where` in it."""

    def hunt(laboratory: Laboratory, bug: str) -> bool:
        with laboratory.copy(name) as root:
            points = [point for point in laboratory.trace(name, root, bug=bug) if where in point.text]
        for point in spread(points, most):
            with laboratory.copy(name) as root:
                order = laboratory.order(name, root, traced=True, bug=bug)
                ending = laboratory.inject(order, strace.kill_at(point))
                if laboratory.check(name, root, ending).breaches:
                    return True
        return False

    return hunt


def failing(name: str, error: str, call: str) -> Hunt:
    """A call fails, each time it is made in turn, and it is the only one."""

    def hunt(laboratory: Laboratory, bug: str) -> bool:
        with laboratory.copy(name) as root:
            points = [point for point in laboratory.trace(name, root, bug=bug) if point.name == call]
        for point in points:
            with laboratory.copy(name) as root:
                order = laboratory.order(name, root, traced=True, bug=bug)
                ending = laboratory.inject(order, *strace.fail_from(point, error, [call]))
                if laboratory.check(name, root, ending).breaches:
                    return True
        return False

    return hunt


def failing_after_the_commit(laboratory: Laboratory, bug: str) -> bool:
    """The disk fails when the commit is done, and nobody could know."""
    with laboratory.copy("promote") as root:
        order = laboratory.order("promote", root, step="fail", failpoint="committed", bug=bug)
        ending = laboratory.worker.run(order)
        return bool(laboratory.check("promote", root, ending).breaches)


def committing_at_once(laboratory: Laboratory, bug: str) -> bool:
    """Three processes commit."""
    with laboratory.copy("commit") as root:
        endings = _at_once(laboratory, root, "commit_many", bug)
        with open_registry(root) as registry:
            wrong = lost_or_doubled(histories(root, "commits"), registry.list(), first=3)
            return endings != {Ending.DONE} or bool(wrong) or bool(registry.verify())


def promoting_at_once(laboratory: Laboratory, bug: str) -> bool:
    """Three processes move production."""
    with laboratory.copy("promote") as root:
        endings = _at_once(laboratory, root, "promote_many", bug)
        with open_registry(root) as registry:
            wrong = not_linearizable(registry.history(), histories(root, "promotions"), [])
        return endings != {Ending.DONE} or bool(wrong)


def _at_once(laboratory: Laboratory, root: Path, role: str, bug: str) -> set[Ending]:
    orders = [laboratory.order(role, root, step="act", worker=worker, count=12, bug=bug) for worker in range(3)]
    children = [laboratory.worker.start(order) for order in orders]
    return {laboratory.worker.wait(child) for child in children}


def reading_what_is_damaged(laboratory: Laboratory, bug: str) -> bool:
    """A bit of an adapter has flipped, and a process reads it."""
    with laboratory.copy("commit") as root:
        flip(KINDS["adapter"](root)[0], random.Random(0))
        return laboratory.worker.run(laboratory.order("read_everything", root, step="act", bug=bug)) is Ending.DONE


HUNTS: dict[str, Hunt] = {
    "no_fsync": power_loss("commit"),
    "no_flush_of_folders": power_loss("commit"),
    "renamed_before_it_is_flushed": power_loss("commit", most=80),
    "written_in_place": kills("commit"),
    "folder_filled_in_place": kills("commit"),
    "committed_without_a_sync": power_loss("promote"),
    "no_journal": kills("rollback"),
    "two_transactions": kills("commit"),
    "acknowledged_before_it_is_committed": failing("promote", "ENOSPC", "pwrite64"),
    "unknown_is_called_failed": failing_after_the_commit,
    "digest_not_compared": reading_what_is_damaged,
    "parent_not_checked": promoting_at_once,
    "no_lock": committing_at_once,
    "tombstone_last": kills("erase", where="erased.json"),
}
