"""Making good what can be made good: leftovers go, objects come back from another copy, and nothing is invented.

What a version or attempt needs and is not there, or is not what its digest says, is taken from the object folder of
another copy of the registry, if that one has exactly it. A damaged object is kept aside, never deleted: it may be all
that is left of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from incremental_llm.errors import IncrementalError, InputError, IntegrityError
from incremental_llm.registry import schema
from incremental_llm.registry.objects import Failpoint, ObjectStore, remove
from incremental_llm.registry.queries import all_snapshots, read_attempts
from incremental_llm.registry.references import references
from incremental_llm.registry.retention import entries
from incremental_llm.registry.transaction import locked

DAMAGED = "damaged"
"""Beside `objects`: what was not what its digest says, and was replaced."""


class Repair(BaseModel):
    """One thing that is not as it should be, and what is or was done about it."""

    model_config = ConfigDict(frozen=True)

    subject: str
    found: str
    action: Literal["remove", "restore", "fold in the log", "none"]
    note: str = ""


def plan(engine: Engine, objects: ObjectStore, root: Path, source: Path | None, grace: timedelta) -> tuple[Repair, ...]:
    """What `repair` would do; nothing is changed.

    Raises:
        InputError: `source` has no objects.
    """
    store = _copy(source)
    return (*_leftovers(objects, grace), *_log(engine, root), *_objects(engine, objects, store))


def repair(
    engine: Engine, objects: ObjectStore, root: Path, source: Path | None, grace: timedelta, failpoint: Failpoint
) -> tuple[Repair, ...]:
    """Do it, under the write lock; what could not be done has the action `none` and says why.

    A kill at any step loses nothing, and the same call goes on.
    """
    store, log = _copy(source), tuple(_log(engine, root))
    with locked(engine):
        leftovers, broken = tuple(_leftovers(objects, grace)), tuple(_objects(engine, objects, store))
        for one in leftovers:
            remove(objects.root / one.subject)
        for one in broken:
            if one.action == "restore" and store is not None:
                _restore(one.subject.removeprefix("object "), objects, store, root / DAMAGED, failpoint)
    if log:
        with engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return (*leftovers, *log, *broken)


def _copy(source: Path | None) -> ObjectStore | None:
    """The objects of another copy of the registry: its folder, or the folder of its objects."""
    if source is None:
        return None
    root = source / "objects" if (source / "objects").is_dir() else source
    if not root.is_dir():
        raise InputError(f"{source}: expected a copy of the registry or of its objects, found no folder.")
    return ObjectStore(root)


def _leftovers(objects: ObjectStore, grace: timedelta) -> Iterator[Repair]:
    before = datetime.now(UTC) - grace
    for entry in entries(objects.root):
        if entry.what == "unfinished" and entry.last_use < before:
            found = f"never finished, {entry.bytes} bytes, last written {entry.last_use:%Y-%m-%d %H:%M}"
            yield Repair(subject=entry.name, found=found, action="remove")


def _log(engine: Engine, root: Path) -> Iterator[Repair]:
    """SQLite's write-ahead log, which it folds in by itself when the last connection closes, unless that was killed."""
    log = root / "registry.db-wal"
    if engine.dialect.name == "sqlite" and log.is_file() and (size := log.stat().st_size):
        yield Repair(subject=log.name, found=f"{size} bytes of committed pages", action="fold in the log")


def _objects(engine: Engine, objects: ObjectStore, store: ObjectStore | None) -> Iterator[Repair]:
    with schema.reading(engine) as connection:
        named = references((*all_snapshots(connection), *read_attempts(connection)))
    owners: dict[str, str] = {}
    for reference in named:
        owners.setdefault(reference.digest, reference.owner)
    for digest, owner in owners.items():
        try:
            if objects.tombstone(digest) is None:
                objects.verify(digest)
        except IntegrityError as error:
            subject, found = f"object {digest}", f"needed by {owner}: {error}"
            if store is None:
                yield Repair(
                    subject=subject, found=found, action="none", note="give a copy of the registry: --from FOLDER"
                )
            elif (problem := _problem(store, digest)) is not None:
                yield Repair(subject=subject, found=found, action="none", note=problem)
            else:
                yield Repair(subject=subject, found=found, action="restore", note=f"from {store.root}")


def _problem(store: ObjectStore, digest: str) -> str | None:
    """Why the copy cannot give an object back."""
    try:
        store.verify(digest)
        return None if store.standing(digest) == digest else "in the copy it has been erased"
    except IncrementalError as error:
        return f"the copy has none that is whole ({error})"


def _restore(digest: str, objects: ObjectStore, store: ObjectStore, kept: Path, failpoint: Failpoint) -> None:
    for path in (objects.root / digest, objects.root / f"{digest}.json"):
        if path.exists():
            kept.mkdir(exist_ok=True)
            path.rename(_free(kept / path.name))
            failpoint("damaged object kept")
    source = store.path(digest)
    if source.is_dir():
        objects.put_folder(source)
    else:
        objects.put_json(store.get_json(digest))
    failpoint("object restored")


def _free(path: Path) -> Path:
    """`path`, or with a number where something of that name was kept before."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition('-')[0]}-{number}")
    return path
