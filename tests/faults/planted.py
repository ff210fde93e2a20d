"""Bugs that somebody could write, each of them found by a campaign: what a harness has never caught it cannot catch.

plant("no_fsync")        this process is worse from here on; done in a child, never in the tests' own process
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from incremental_llm import artifacts
from incremental_llm.adapters import stack
from incremental_llm.registry import objects, schema, store, transaction, updates, verify


def plant(bug: str) -> None:
    """Replace a part of the package in this process by a wrong one."""
    BUGS[bug]()


def no_fsync() -> None:
    """Nothing of an object is flushed."""
    for module in (artifacts, objects, store):
        module.flush = lambda path: None  # type: ignore[attr-defined]


def no_flush_of_folders() -> None:
    """Contents are flushed, and the names under which they are found are not."""
    right = artifacts.flush
    for module in (artifacts, objects, store):
        module.flush = lambda path: None if path.is_dir() else right(path)  # type: ignore[attr-defined]


def renamed_before_it_is_flushed() -> None:
    """The order of rename and fsync is the other way round."""

    def write_atomic(path: Path, data: str | bytes) -> None:
        staged = path.with_name(f".{path.name}.tmp")
        staged.write_bytes(data.encode() if isinstance(data, str) else data)
        staged.replace(path)
        artifacts.flush(path)
        artifacts.flush(path.parent)

    _everywhere("write_atomic", write_atomic)


def written_in_place() -> None:
    """A file is written under its own name."""

    def write_atomic(path: Path, data: str | bytes) -> None:
        text = data.encode() if isinstance(data, str) else data
        with path.open("wb", buffering=0) as stream:
            for start in range(0, len(text), 64):
                stream.write(text[start : start + 64])
            os.fsync(stream.fileno())
        artifacts.flush(path.parent)

    _everywhere("write_atomic", write_atomic)


def folder_filled_in_place() -> None:
    """A folder is filled under its own name, its manifest first."""

    @contextlib.contextmanager
    def staged_folder(target: Path) -> Iterator[Path]:
        target.mkdir(parents=True)
        yield target
        artifacts.write_manifest(target)

    right = objects.shutil.copyfile

    def copy(source: Path, copied: Path) -> None:
        manifest = copied.parent / artifacts.MANIFEST
        if not manifest.exists():
            files = artifacts._file_digests(source.parent)
            manifest.write_text(json.dumps({"files": files, "digest": objects.folder_digest(source.parent)}))
        right(source, copied)

    objects.staged_folder = staged_folder  # type: ignore[attr-defined]
    objects.shutil = _with(shutil, copyfile=copy)  # type: ignore[attr-defined]


def committed_without_a_sync() -> None:
    """SQLite is told not to wait for the disk."""
    _after_connecting("PRAGMA synchronous=OFF")


def no_journal() -> None:
    """SQLite writes over its pages with no way back."""
    right = schema._configure_sqlite

    def configure(connection: Any, record: Any) -> None:
        right(connection, record)
        connection.execute("PRAGMA journal_mode=OFF").close()

    schema._configure_sqlite = configure


def two_transactions() -> None:
    """Version and ref are committed one after the other."""
    right = transaction._write

    def write(connection: Any, record: Any, before: Any, time: str) -> None:
        if isinstance(record, updates.MoveRef):
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        right(connection, record, before, time)

    transaction._write = write


def acknowledged_before_it_is_committed() -> None:
    """A commit that fails is passed over."""

    def commit(root: Any, failpoint: Any) -> None:
        with contextlib.suppress(Exception):
            root.commit()

    transaction.commit = commit


def unknown_is_called_failed() -> None:
    """An error in COMMIT says that nothing was changed."""
    from incremental_llm.errors import CommitError

    def commit(root: Any, failpoint: Any) -> None:
        try:
            root.commit()
            failpoint("committed")
        except Exception as error:
            raise CommitError("nothing was changed") from error

    transaction.commit = commit


def digest_not_compared() -> None:
    """A folder counts as what its name says."""
    for module in (objects, stack):
        module.verify_folder = lambda folder: folder.name  # type: ignore[attr-defined]
    objects.file_digest = lambda path: path.name.removesuffix(".json")  # type: ignore[attr-defined]
    verify.verify_tensors = lambda folder: None  # type: ignore[attr-defined]


def parent_not_checked() -> None:
    """A move says nothing of where the ref has to be."""
    right = updates.failure
    updates.failure = lambda condition, state: None if isinstance(condition, updates.RefIs) else right(condition, state)


def no_lock() -> None:
    """Writers do not queue: each reads, and writes what it read."""
    schema.lock = lambda connection: schema.FORMAT
    schema._begin_sqlite = lambda connection: None


def tombstone_last() -> None:
    """An erased object goes before anything says so."""

    def entomb(self: objects.ObjectStore, digest: str, stone: objects.Tombstone) -> None:
        self.discard(digest)
        objects.write_atomic(self._stone(digest), json.dumps({"erasure": stone.erasure, "successor": stone.successor}))

    objects.ObjectStore.entomb = entomb  # type: ignore[method-assign]


def _everywhere(name: str, value: Any) -> None:
    for module in (artifacts, objects):
        setattr(module, name, value)


def _after_connecting(pragma: str) -> None:
    right = schema._configure_sqlite

    def configure(connection: Any, record: Any) -> None:
        right(connection, record)
        connection.execute(pragma).close()

    schema._configure_sqlite = configure


def _with(module: Any, **changes: Any) -> Any:
    """A module with some names replaced, for one user of it."""
    from types import SimpleNamespace

    return SimpleNamespace(**{**vars(module), **changes})


BUGS: dict[str, Callable[[], None]] = {
    made.__name__: made
    for made in (
        no_fsync,
        no_flush_of_folders,
        renamed_before_it_is_flushed,
        written_in_place,
        folder_filled_in_place,
        committed_without_a_sync,
        no_journal,
        two_transactions,
        acknowledged_before_it_is_committed,
        unknown_is_called_failed,
        digest_not_compared,
        parent_not_checked,
        no_lock,
        tombstone_last,
    )
}
