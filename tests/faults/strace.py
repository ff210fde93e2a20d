"""Faults at system calls, by strace: what an operation calls in its order, and a signal or an error at one of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WRITES = ("write", "pwrite64", "pwritev", "sendfile", "copy_file_range", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync")
NAMES = ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat")
OPENS = ("openat", "open", "creat")
DURABLE = (*WRITES, *SYNCS, *NAMES, *OPENS)
"""Calls that change what is on the disk, or wait for it; of the opening ones those that may create."""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)$")


@dataclass(frozen=True)
class Point:
    """A system call of a process: the `ordinal`th one of this `name`, from 1. `before` counts all that came earlier."""

    name: str
    ordinal: int
    before: tuple[tuple[str, int], ...]
    text: str


@cache
def missing() -> str:
    """Why strace cannot be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


def attach(child: int, *options: str, out: Path | str = "/dev/null") -> None:
    """Trace a process that waits for it, until it ends.

    Names that a processor does not have are passed over ("?").
    """
    calls = ",".join(f"?{name}" for name in DURABLE)
    command = ["strace", "-qq", "-y", "-o", str(out), "-e", f"trace={calls}", "-e", "signal=none", *options]
    subprocess.run([*command, "-p", str(child)], check=True, capture_output=True)


def kill_at(point: Point) -> str:
    """The option that ends the process as `kill -9` does, before the call is done."""
    return f"--inject={point.name}:signal=KILL:when={point.ordinal}"


def fail_once(point: Point, error: str) -> str:
    """The option that lets one call fail."""
    return f"--inject={point.name}:error={error}:when={point.ordinal}"


def fail_from(point: Point, error: str, calls: Iterable[str]) -> list[str]:
    """The options that let this call and every later one of these `calls` fail."""
    seen = dict(point.before)
    return [f"--inject=?{name}:error={error}:when={seen.get(name, 0) + 1}+" for name in calls]


def points_in(log: Path) -> list[Point]:
    """The calls of a trace that changed something, in their order."""
    seen: Counter[str] = Counter()
    points = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if (call := _CALL.match(line)) is None:
            continue
        name, arguments, result = call[1], call[2], call[3]
        before = tuple(sorted(seen.items()))
        seen[name] += 1
        if int(result) >= 0 and (name not in OPENS or "O_CREAT" in arguments):
            points.append(Point(name, seen[name], before, f"{name}({arguments})"))
    return points
