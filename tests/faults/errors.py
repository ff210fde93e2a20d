"""Calls that fail, once or from then on: no space, a broken disk, no permission, writes that are cut short."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from incremental_llm.errors import IncrementalError

from . import strace
from .laboratory import Laboratory, Tally, spread
from .world import observe, open_registry

CREATING = ("openat", "mkdir", "rename", "renameat", "renameat2")
ERRORS: dict[str, tuple[str, ...]] = {
    "ENOSPC": (*strace.WRITES, *strace.SYNCS, *CREATING),
    "EIO": (*strace.WRITES, *strace.SYNCS, "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    "EACCES": (*CREATING, "unlink", "unlinkat"),
}
"""Which calls an error can come from."""

FILE_LIMITS = (300, 600, 2000, 5000, 9000, 24_700, 33_000, 60_000, 90_000, 120_000, 150_000, 200_000)
"""Sizes, in bytes, beyond which no file may grow: the write that reaches it is done in part, and the next one fails."""


def fail_everywhere(laboratory: Laboratory, name: str, error: str, most: int, tally: Tally, *, ever: bool) -> None:
    """Let each call that can (or `most` of them) fail; with `ever`, and all that come after it."""
    with laboratory.copy(name) as root:
        points = [point for point in laboratory.trace(name, root) if point.name in ERRORS[error]]
    lasting = tuple(call for call in ERRORS[error] if call not in strace.OPENS)  # which reads open files with too
    for point in spread(points, most):
        options = strace.fail_from(point, error, lasting) if ever else [strace.fail_once(point, error)]
        with laboratory.copy(name) as root:
            ending = laboratory.inject(laboratory.order(name, root, traced=True), *options)
            verdict = laboratory.check(name, root, ending)
        tally.add(
            f"{name}: {error} {'from' if ever else 'at'} {point.text}: {laboratory.told(ending)}", ending, verdict
        )


def cut_short(laboratory: Laboratory, name: str, tally: Tally, limits: tuple[int, ...] = FILE_LIMITS) -> None:
    """Let no file grow beyond each of these sizes."""
    for limit in limits:
        with laboratory.copy(name) as root:
            ending = laboratory.worker.run(laboratory.order(name, root, file_limit=limit))
            verdict = laboratory.check(name, root, ending)
        tally.add(f"{name}: no file over {limit} bytes: {laboratory.told(ending)}", ending, verdict)


def fill_up(laboratory: Laboratory, name: str, disk: Path, left: tuple[int, ...], tally: Tally) -> None:
    """Run the operation on a disk of which `left` KiB are free; the old state is served, and all is well with room."""
    for free in left:
        root = disk / "root"
        with laboratory.copy(name) as ready:
            shutil.copytree(ready, root)
        filler = fill(disk, free)
        ending = laboratory.worker.run(laboratory.order(name, root))
        served = _served(root)
        filler.unlink()
        verdict = laboratory.check(name, root, ending)
        if served not in laboratory.states(name):
            verdict.add("unreadable", f"no state is served while the disk is full: {served}")
        tally.add(f"{name}: {free} KiB free: {laboratory.told(ending)}", ending, verdict)
        shutil.rmtree(root)


def _served(root: Path) -> str:
    """What a reader gets: a state, or the error."""
    try:
        with open_registry(root) as registry:
            registry.head()
            return observe(registry)
    except IncrementalError as error:
        return str(error)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves so many KiB of the disk."""
    filler, found = disk / "filler", os.statvfs(disk)
    filler.write_bytes(b"\0" * max(0, found.f_bavail * found.f_frsize - free * 1024))
    return filler


@contextmanager
def small_disk(at: Path, size: str = "2m") -> Iterator[Path]:
    """A tmpfs of its own.

    Raises:
        PermissionError: mounting is not allowed here.
    """
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at], capture_output=True, text=True)
    if done.returncode != 0:
        raise PermissionError(done.stderr.strip())
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
