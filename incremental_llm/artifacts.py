"""Files that are either whole or absent: digests, staged folders, manifests.

    >>> with staged_folder(target) as folder:       # doctest: +SKIP
    ...     (folder / "items.jsonl").write_text("...")
    >>> verify_folder(target)                       # doctest: +SKIP

The one design fact: a folder is written beside its target, its manifest (sha256 and size of every file) last, all of it
flushed to the disk, and then renamed; a folder without a manifest does not exist for any reader.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError
from incremental_llm.tensors import damaged_tensors, tensor_digests

MANIFEST = "manifest.json"
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_WEIGHTS = ".safetensors"


def file_digest(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data`: a reader sees the old file or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        staged.write_bytes(data.encode() if isinstance(data, str) else data)
        flush(staged)
        staged.replace(path)
        flush(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN raises ValueError.

    Half of a surrogate pair, which chat logs do hold and UTF-8 cannot, is written as its JSON escape.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; on a clean exit it gets its manifest and becomes `target`, on an error it is removed.

    An existing complete `target` wins: objects are content-addressed, so the one that is there is the same.

    Raises:
        IntegrityError: `target` holds files without a manifest; they are left as they are.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    staged.mkdir()
    try:
        yield staged
        write_manifest(staged)
        _publish(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_manifest(folder: Path) -> str:
    """Flush every file and folder below `folder`, write its manifest last, and return the folder's digest.

    Beside the digest of each file it holds those of the tensors in each, by which what is damaged can be named.
    """
    files, tensors = _file_digests(folder), _tensor_digests(folder)
    for path in folder.rglob("*"):
        flush(path)
    manifest = {"files": files, "digest": json_digest(files)}
    write_json(folder / MANIFEST, {**manifest, "tensors": tensors} if tensors else manifest)
    return json_digest(files)


def folder_digest(folder: Path) -> str:
    """Digest of what a folder holds now (names and contents of its files, manifest aside)."""
    return json_digest(_file_digests(folder))


def verify_folder(folder: Path) -> str:
    """Compare a folder with its manifest and return its digest.

    Raises:
        IntegrityError: no manifest, or a file that is missing, changed or extra; the message names it, and in a file of
            weights the tensors that are damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected: dict[str, Any] = dict(manifest["files"])
        if manifest["digest"] != json_digest(expected):
            raise ValueError("its digest is not that of the files it lists")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder}: expected a complete folder with {MANIFEST}, found none that can be read ({error}). "
            "It was not written to the end: remove it and run again."
        ) from error
    found = _file_digests(folder)
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        named = ", ".join(f"{name}{_damage(folder, name, manifest)}" for name in wrong)
        raise IntegrityError(
            f"{folder}: {named} differ from {MANIFEST}. "
            "The files were changed or damaged after they were written: restore them from a copy."
        )
    return json_digest(expected)


def verify_tensors(folder: Path) -> None:
    """Compare the tensors of a folder, whose files are as its manifest says, with what that says of them.

    Raises:
        IntegrityError: a tensor that differs, named; as the files are whole, it is the manifest that was changed.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if (said := manifest.get("tensors", {})) and (found := _tensor_digests(folder)) != said:
        wrong = [
            f"{name} ({tensor})"
            for name in sorted(said.keys() | found.keys())
            for tensor in sorted(said.get(name, {}).keys() | found.get(name, {}).keys())
            if said.get(name, {}).get(tensor) != found.get(name, {}).get(tensor)
        ]
        raise IntegrityError(
            f"{folder}: expected the tensors that {MANIFEST} lists, found others: {', '.join(wrong)}. The manifest was "
            "changed after it was written: restore it from a copy."
        )


def is_complete(folder: Path) -> bool:
    """Whether `folder` was written to the end (its manifest is there); contents are not read."""
    return (folder / MANIFEST).is_file()


def _publish(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`, unless a complete one is there, perhaps from another process a moment ago."""
    if not is_complete(target):
        try:
            staged.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not is_complete(target):
                raise IntegrityError(
                    f"{target}: expected it to be absent, empty or complete, found something without a {MANIFEST} "
                    f"({error.strerror}). It is not ours to delete: move it away, or choose another place."
                ) from error
    flush(target.parent)


def _file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in files
    }


def _tensor_digests(folder: Path) -> dict[str, dict[str, str]]:
    """File -> tensor -> digest; what only has the name of a weights file has none."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob(f"*{_WEIGHTS}")):
        with contextlib.suppress(ValueError):
            found[path.relative_to(folder).as_posix()] = tensor_digests(path)
    return found


def _damage(folder: Path, name: str, manifest: dict[str, Any]) -> str:
    """Which tensors of a file are damaged, in brackets, as far as the manifest can tell."""
    expected = manifest.get("tensors", {}).get(name) if (folder / name).is_file() else None
    return f" ({', '.join(damaged_tensors(folder / name, expected) or ('between its tensors',))})" if expected else ""


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def switch_to_wal(cursor: Any, patience: float) -> None:
    """Turn on SQLite's write-ahead log; the first time, two processes may do so at once.

    The switch needs the file alone, and SQLite refuses it at once instead of waiting for its busy timeout. Any other
    failure, such as a full disk, is raised at once.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
