"""What lies in the object folder, what of it is needed, and letting go of the rest.

A version is never let go: every version, attempt and erasure keeps its objects, whatever refs there are. What may go is
what a killed or refused run has put and nobody refers to, and folders that were never written to the end.

The one design fact: an object is put before it is referred to, so unused is not the same as useless. It goes only when
it was last put longer ago than the grace period, and it is renamed under the write lock, which no commit can hold
meanwhile; whoever puts it again finds it gone and stores it anew, and a commit that came too late is refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Engine

from incremental_llm.registry import schema
from incremental_llm.registry.erasure import read_erasures, refuse_pending
from incremental_llm.registry.objects import Failpoint, ObjectStore, remove
from incremental_llm.registry.references import needed
from incremental_llm.registry.transaction import locked

GRACE = timedelta(hours=24)
"""Longer than a run takes from putting its adapter to its commit: it measures the candidate in between."""
_OBJECT = re.compile(r"([0-9a-f]{64})(\.json)?")
_STONE = re.compile(r"[0-9a-f]{64}\.erased\.json")
_STAGED = re.compile(r"\..+\.tmp")


class Entry(BaseModel):
    """One thing in the object folder: its size in bytes, and when it was last put or written to."""

    model_config = ConfigDict(frozen=True)

    name: str
    what: Literal["object", "unfinished", "tombstone", "foreign"]
    digest: str | None = None
    bytes: int
    last_use: AwareDatetime


class Garbage(BaseModel):
    """Something that nobody refers to, and why it goes or stays."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    last_use: AwareDatetime
    why: str


class Collected(BaseModel):
    """What a collection takes away (`garbage`), leaves for the grace period (`young`), and does not know."""

    model_config = ConfigDict(frozen=True)

    garbage: tuple[Garbage, ...]
    young: tuple[Garbage, ...]
    foreign: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """What it frees."""
        return sum(one.bytes for one in self.garbage)


def entries(root: Path) -> Iterator[Entry]:
    """Everything in an object folder, by name; what goes while it is looked at is left out."""
    for path in sorted(root.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            stats = [one.stat() for one in (path, *(path.rglob("*") if path.is_dir() else ()))]
            used = datetime.fromtimestamp(max(stat.st_mtime for stat in stats), UTC)
            size = sum(one.stat().st_size for one in _files(path))
            named = _OBJECT.fullmatch(path.name)
            yield Entry(name=path.name, what=_what(path), digest=named and named[1], bytes=size, last_use=used)


def plan(engine: Engine, objects: ObjectStore, grace: timedelta, now: datetime) -> Collected:
    """What `collect` would do now."""
    with schema.reading(engine) as connection:
        refuse_pending(read_erasures(connection))
        return _sorted(list(entries(objects.root)), needed(connection), now - grace)


def collect(engine: Engine, objects: ObjectStore, grace: timedelta, now: datetime, failpoint: Failpoint) -> Collected:
    """Remove what nobody refers to and nobody has put for as long as `grace`; what was removed, and what was left.

    A kill at any step leaves every object whole or absent; what it had renamed goes with the next collection.

    Raises:
        PendingErasureError: an erasure has not ended.
        IntegrityError: a version cannot be read, so nobody can say what it needs.
    """
    aside: list[Path] = []
    with locked(engine) as connection:
        failpoint("collecting")
        refuse_pending(read_erasures(connection))
        found = _sorted(list(entries(objects.root)), needed(connection), now - grace)
        gone = []
        for one in found.garbage:
            path = _set_aside(objects, one)
            if path is not None:
                gone.append(one)
                aside.append(path)
    for path in aside:  # the lock is free again: to delete what is large takes long
        remove(path)
        failpoint("object removed")
    return found.model_copy(update={"garbage": tuple(gone)})


def _set_aside(objects: ObjectStore, one: Garbage) -> Path | None:
    """Where it lies now, out of the way; None where somebody has put it again since it was looked at."""
    path = objects.root / one.name
    if _STAGED.fullmatch(one.name):
        return path
    with contextlib.suppress(FileNotFoundError):
        aside = objects.set_aside(path)
        if _last_use(aside) <= one.last_use:
            return aside
        with contextlib.suppress(OSError):  # stored anew in this moment: the one that is there is the same
            aside.rename(path)
            return None
        return aside
    return None


def _sorted(found: list[Entry], kept: frozenset[str], before: datetime) -> Collected:
    garbage: list[Garbage] = []
    young: list[Garbage] = []
    for entry in found:
        if entry.what in ("tombstone", "foreign") or entry.digest in kept:
            continue
        unused = f"unused since {entry.last_use:%Y-%m-%d %H:%M}"
        why = f"no version or attempt has it, {unused}" if entry.what == "object" else f"never finished, {unused}"
        fate = garbage if entry.last_use < before else young
        fate.append(Garbage(name=entry.name, bytes=entry.bytes, last_use=entry.last_use, why=why))
    foreign = tuple(entry.name for entry in found if entry.what == "foreign")
    return Collected(garbage=tuple(garbage), young=tuple(young), foreign=foreign)


def _what(path: Path) -> Literal["object", "unfinished", "tombstone", "foreign"]:
    if _STONE.fullmatch(path.name):
        return "tombstone"
    if _OBJECT.fullmatch(path.name):
        return "object"
    return "unfinished" if _STAGED.fullmatch(path.name) else "foreign"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (one for one in path.rglob("*") if one.is_file())
    else:
        yield path


def _last_use(path: Path) -> datetime:
    newest = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    return datetime.fromtimestamp(newest, UTC)
