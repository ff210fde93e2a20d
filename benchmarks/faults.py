"""What the registry loses when everything fails: kills, failing calls, power cuts, damaged files, races, planted bugs.

    python benchmarks/faults.py [--jobs N] [--only kills,power]        # all of it takes about 20 minutes of two cores

The campaigns are those of tests/faults, of which the tests run a few points each; here they run at large. strace has to
be installed and allowed to trace. With `--only` nothing is recorded.

`torn`, `lost` and `unreadable` are faults after which a promise did not hold, over all kills, failing calls and power
cuts (tests/faults/invariants.py). `undetected` are damaged files of which a reader got something else than was written
and no error; a flip in bytes of the database that hold nothing is `harmless` and counts in `corruptions` too.
`recovery_seconds` is the slowest opening after a fault, `lock_seconds` how long a commit took while a process that
held the lock had been killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from record import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults import errors, kills, strace
from tests.faults.concurrent import histories, lost_or_doubled, not_linearizable
from tests.faults.corruption import KINDS, Account, cut, damage, flip, remove, swap
from tests.faults.hunts import HUNTS
from tests.faults.laboratory import Laboratory, Tally, laboratory_of
from tests.faults.operations import OPERATIONS, erase
from tests.faults.power_loss import lose_power
from tests.faults.worker import Ending
from tests.faults.world import night, open_registry

Figures = dict[str, float]

KILLS = {"erase": 120}
"""At most so many points of an operation; of every other one all."""
POWER_CUTS = {
    "commit": 700,
    "rollback": 400,
    "promote": 300,
    "refuse": 300,
    "upgrade": 200,
    "erase": 200,
    "checkpoint": 40,
}


def figures_of(tally: Tally, name: str) -> Figures:
    print(f"{name}: {tally}", flush=True)
    kinds = {kind: float(tally.count(kind)) for kind in ("torn", "lost", "unreadable")}
    return {name: float(tally.faults), **kinds, "recovery_seconds": tally.slowest}


def killed(laboratory: Laboratory) -> Figures:
    tally = Tally()
    for name in OPERATIONS:
        kills.kill_everywhere(laboratory, name, KILLS.get(name, 1000), tally)
    return figures_of(tally, "kill_points")


def killed_again(laboratory: Laboratory) -> Figures:
    tally = Tally()
    for name in OPERATIONS:
        kills.kill_recovery(laboratory, name, 4, 5, tally)
    return figures_of(tally, "recovery_kill_points")


def failing(laboratory: Laboratory) -> Figures:
    tally = Tally()
    for name in ("commit", "promote", "rollback", "refuse"):
        for error in errors.ERRORS:
            for ever in (False, True):
                errors.fail_everywhere(laboratory, name, error, 24, tally, ever=ever)
        errors.cut_short(laboratory, name, tally)
    with laboratory.empty() as folder, errors.small_disk(folder / "disk") as disk:
        for name in ("commit", "rollback"):
            errors.fill_up(laboratory, name, disk, (0, 4, 8, 16, 32, 48, 64, 96, 128, 192), tally)
    return figures_of(tally, "io_error_points")


def power(laboratory: Laboratory) -> Figures:
    tally = Tally()
    for name, most in POWER_CUTS.items():
        lose_power(laboratory, name, most, tally)
    return figures_of(tally, "power_loss_states")


def damaged(laboratory: Laboratory) -> Figures:
    account = Account()
    with laboratory.copy("erase") as root:
        erase(root, lambda name: None)
        for kind in KINDS:
            for how, count in ((flip, 1000), (cut, 200), (remove, 5), (swap, 5)):
                damage(root, kind, count, how, 0, account)
    print(f"corruptions: {account}", flush=True)
    return {
        "corruptions": float(account.done),
        "harmless": float(account.harmless),
        "unnamed": float(len(account.unnamed)),
        "undetected": float(len(account.undetected)),
    }


def at_once(laboratory: Laboratory, processes: int = 8, commits: int = 200, promotions: int = 1000) -> Figures:
    """Commits of all processes, then promotions by four of them while two read, then a lock whose holder is killed."""
    with laboratory.copy("commit") as root:
        _together(laboratory, root, "commit_many", processes, commits)
        with open_registry(root) as registry:
            wrong = lost_or_doubled(histories(root, "commits"), registry.list(), first=3)
            wrong += map(str, registry.verify())
            made = len(registry.list()) - 3
    with laboratory.copy("promote") as root:
        readers = _start(laboratory, root, "read_until", 2, 10)
        _together(laboratory, root, "promote_many", 4, promotions // 4)
        (root / "stop").touch()
        _wait(laboratory, readers)
        with open_registry(root) as registry:
            wrong += not_linearizable(registry.history(), histories(root, "promotions"), histories(root, "reads"))
            wrong += [f"mixed: {path}" for path in root.glob("mixed-*.json") if path.read_text(encoding="utf-8") != "0"]
    for text in wrong[:20]:
        print(text, flush=True)
    return {"commits_concurrent": float(made), "lost": float(len(wrong)), "lock_seconds": _lock_seconds(laboratory)}


def _start(laboratory: Laboratory, root: Path, role: str, processes: int, count: int) -> list[int]:
    orders = (laboratory.order(role, root, step="act", worker=worker, count=count) for worker in range(processes))
    return [laboratory.worker.start(order) for order in orders]


def _wait(laboratory: Laboratory, children: list[int]) -> None:
    endings = {laboratory.worker.wait(child) for child in children}
    if endings != {Ending.DONE}:
        raise SystemExit(f"expected every process to end well, found {endings}: {laboratory.said}")


def _together(laboratory: Laboratory, root: Path, role: str, processes: int, count: int) -> None:
    _wait(laboratory, _start(laboratory, root, role, processes, count))


def _lock_seconds(laboratory: Laboratory) -> float:
    with laboratory.copy("commit") as root:
        child = laboratory.worker.start(laboratory.order("commit", root, step="hold", failpoint="before commit"))
        while not (root / "holding").exists():
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        laboratory.worker.wait(child)
        started = time.perf_counter()
        with open_registry(root) as registry:
            night(registry, 7, root / "next")
        return time.perf_counter() - started


def planted(laboratory: Laboratory) -> Figures:
    caught = {bug: hunt(laboratory, bug) for bug, hunt in HUNTS.items()}
    print(f"planted: {caught}", flush=True)
    return {"planted_bugs": float(len(caught)), "planted_caught": float(sum(caught.values()))}


CAMPAIGNS: dict[str, Callable[[Laboratory], Figures]] = {
    "power": power,
    "kills": killed,
    "errors": failing,
    "damage": damaged,
    "planted": planted,
    "recovery": killed_again,
    "at_once": at_once,
}


def run(name: str) -> Figures:
    with laboratory_of() as laboratory:
        return CAMPAIGNS[name](laboratory)


def together(found: list[Figures]) -> Figures:
    """Counts are added up, seconds are the worst."""
    names = dict.fromkeys(name for figures in found for name in figures)
    return {
        name: (max if name.endswith("_seconds") else sum)(figures[name] for figures in found if name in figures)
        for name in names
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="campaigns at a time")
    parser.add_argument("--only", default="", help="some campaigns, with commas; records nothing")
    arguments = parser.parse_args()
    if why := strace.missing():
        raise SystemExit(f"expected to inject faults at system calls, found that {why}")
    names = arguments.only.split(",") if arguments.only else list(CAMPAIGNS)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        figures = together(list(pool.map(run, names)))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not arguments.only:
        record("faults", figures, "python benchmarks/faults.py")
    broken = [name for name in ("torn", "lost", "unreadable", "undetected", "unnamed") if figures.get(name)]
    missed = figures.get("planted_bugs", 0) - figures.get("planted_caught", 0)
    return int(bool(broken) or missed > 0)


if __name__ == "__main__":
    sys.exit(main())
