"""Where faults are made: a template to copy, a worker that runs operations, and a count of what was found."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from . import strace
from .invariants import Breach, Verdict, check, states_of
from .operations import OPERATIONS, Operation
from .strace import Point
from .worker import Ending, Order, Worker
from .world import State, build


@dataclass
class Tally:
    """What a campaign has done and found: faults that were made, how operations ended, breaches with their place."""

    faults: int = 0
    endings: Counter[Ending] = field(default_factory=Counter)
    breaches: list[tuple[str, Breach]] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, where: str, ending: Ending, verdict: Verdict) -> None:
        """Count one fault."""
        self.faults += 1
        self.endings[ending] += 1
        self.breaches += [(where, breach) for breach in verdict.breaches]
        self.slowest = max(self.slowest, verdict.seconds)

    def count(self, kind: str) -> int:
        """How many faults led to a breach of this kind."""
        return len({where for where, breach in self.breaches if breach.kind == kind})

    def __str__(self) -> str:
        lines = [f"{self.faults} faults, {len(self.breaches)} breaches"]
        return "\n".join([*lines, *(f"{where}: {breach.kind}: {breach.text}" for where, breach in self.breaches[:20])])


class Laboratory:
    """Copies of one template below `folder`, and the worker that runs operations on them."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self._template = folder / "template"
        self._prepared: dict[str, tuple[Path, list[State]]] = {}
        self._made = 0
        build(self._template, url)

    @cached_property
    def worker(self) -> Worker:
        """Started when it is first needed."""
        return Worker()

    def close(self) -> None:
        """End the worker."""
        if "worker" in self.__dict__:
            self.worker.__exit__(None, None, None)

    def states(self, name: str) -> list[State]:
        """The states that the operation goes through."""
        return self._ready(name)[1]

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """A workspace of its own in which the operation can begin; gone afterwards."""
        with self.copy_of(self._ready(name)[0]) as root:
            yield root

    @contextmanager
    def copy_of(self, folder: Path) -> Iterator[Path]:
        """A copy of any folder; gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            root = Path(scratch) / "root"
            shutil.copytree(folder, root, symlinks=True)
            yield root

    @contextmanager
    def empty(self) -> Iterator[Path]:
        """An empty folder; gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            yield Path(scratch)

    def trace(self, name: str, root: Path, step: str = "run", bug: str = "") -> list[Point]:
        """The points of an operation, or of recovering from it; runs it at `root`."""
        log = self.folder / "trace.log"
        ending = self.inject(self.order(name, root, step=step, traced=True, bug=bug), out=log)
        if ending is not Ending.DONE:
            raise AssertionError(f"{name}: expected it to go through without a fault, found {self.said}")
        return strace.points_in(log)

    def order(self, name: str, root: Path, **how: Any) -> Order:
        """An order whose errors can be read with `said`."""
        return Order(name, str(root), **{"errors": str(self.folder / "errors.txt"), **how})

    @property
    def said(self) -> str:
        """The error of the last child."""
        return (self.folder / "errors.txt").read_text(encoding="utf-8")

    def told(self, ending: Ending) -> str:
        """How a child ended, in words."""
        return ending.name if ending is Ending.DONE else f"{ending.name}, {self.said.strip().rpartition(chr(10))[2]}"

    def inject(self, order: Order, *options: str, out: Path | str = "/dev/null") -> Ending:
        """Run an order under strace with these options."""
        child = self.worker.start(order)
        strace.attach(child, *options, out=out)
        return self.worker.wait(child)

    def check(self, name: str, root: Path, ending: Ending, *, twice: bool = True) -> Verdict:
        """Hold what is at `root` to every promise."""
        return check(root, OPERATIONS[name], self.states(name), ending, twice=twice)

    def _ready(self, name: str) -> tuple[Path, list[State]]:
        if name not in self._prepared:
            operation: Operation = OPERATIONS[name]
            ready = self.folder / f"ready-{name}"
            shutil.copytree(self._template, ready)
            operation.prepare(ready)
            with self.copy_of(ready) as root:
                self._prepared[name] = ready, states_of(operation, root)
        return self._prepared[name]


@contextmanager
def laboratory_of(url: str | None = None) -> Iterator[Laboratory]:
    """A laboratory in memory where there is a disk of it, as nothing here asks a real one to keep anything."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        made = Laboratory(Path(folder) / "laboratory", url)
        try:
            yield made
        finally:
            made.close()


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of them, evenly spread, the last one always among them."""
    if len(points) <= most:
        return list(points)
    return [points[(index + 1) * len(points) // most - 1] for index in range(most)]
