"""Immutable objects by content: folders at `<digest>/`, JSON values at `<digest>.json`. No database.

A folder's digest is the one of its manifest; a JSON value's digest is its `json_digest`, which is also what `sha256sum`
says of the file. An object is flushed to the disk and verified before anything can refer to it.

An object that was erased has left a tombstone, `<digest>.erased.json`, which names the object that stands in its place,
if any does. Readers of the old digest get that one, so a version goes on with what is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import (
    MANIFEST,
    file_digest,
    flush,
    folder_digest,
    is_complete,
    staged_folder,
    verify_folder,
    write_atomic,
)
from incremental_llm.chat import canonical_json, json_digest
from incremental_llm.errors import InputError, IntegrityError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
"""File names that hold pickles: running code when loaded. By name, as a safetensors header can begin like a pickle."""

Failpoint = Callable[[str], None]
"""Called with the name of each step that changes something durable; tests raise or exit in it."""


def no_failpoint(name: str) -> None:
    """The failpoint of real life."""


@dataclass(frozen=True)
class Tombstone:
    """What an erased object has left: the erasure, and the digest of the object in its place; None where none is."""

    erasure: str
    successor: str | None


class ObjectStore:
    """A folder of objects; putting the same content twice stores it once."""

    def __init__(self, root: Path, failpoint: Failpoint = no_failpoint) -> None:
        self.root = root
        self._failpoint = failpoint

    def put_folder(self, folder: Path) -> str:
        """Copy a folder into the store and return its digest.

        Raises:
            InputError: not a folder, an empty one, a pickle or a link in it.
            IntegrityError: the folder differs from its own manifest, changed while it was copied, or is damaged in the
                store.
        """
        files = _plain_files(folder)
        digest = verify_folder(folder) if is_complete(folder) else folder_digest(folder)
        target = self.root / digest
        self._refuse_erased(digest)
        if self._used_again(digest):
            return digest
        with staged_folder(target) as staged:
            for file in files:
                copy = staged / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            self._failpoint("object staged")
            if folder_digest(staged) != digest:
                raise IntegrityError(
                    f"{folder}: expected a copy with digest {digest[:12]}, found another. "
                    "It changed while it was copied: finish writing it, then put it again."
                )
        self._failpoint("object published")
        return digest

    def put_json(self, value: Any) -> str:
        """Store a JSON value and return its `json_digest`; NaN raises ValueError."""
        digest = json_digest(value)
        self._refuse_erased(digest)
        if self._used_again(digest):
            return digest
        self._failpoint("object staged")
        write_atomic(self._file(digest), canonical_json(value).encode("utf-8", "surrogatepass"))
        self._failpoint("object published")
        return digest

    def get_json(self, digest: str) -> Any:
        """A stored JSON value, checked against its digest.

        Raises:
            IntegrityError: it is absent or damaged.
        """
        self.verify(digest)
        path = self.path(digest)
        if not path.is_file():
            raise IntegrityError(f"object {digest[:12]}: expected a JSON value, found a folder: use its path")
        return json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))

    def path(self, digest: str) -> Path:
        """Where an object lies, or the one in its place; its contents are not read (`verify` does).

        Raises:
            IntegrityError: it is absent, or was erased with nothing in its place.
        """
        digest = self.standing(digest)
        if is_complete(self.root / digest):
            return self.root / digest
        if self._file(digest).is_file():
            return self._file(digest)
        raise IntegrityError(
            f"object {digest}: expected it in {self.root}, found none. Copy it back from another copy of the registry."
        )

    def verify(self, digest: str) -> None:
        """Read an object and compare it with its digest.

        Raises:
            IntegrityError: absent, damaged, or another object under this name.
        """
        path, digest = self.path(digest), self.standing(digest)
        found = verify_folder(path) if path.is_dir() else file_digest(path)
        if found != digest:
            raise IntegrityError(
                f"{path}: expected digest {digest[:12]}, found {found[:12]}. "
                "It was changed or damaged after it was written: restore it from a copy."
            )

    def standing(self, digest: str) -> str:
        """The digest of the object that readers of `digest` get: itself, unless it was erased.

        Raises:
            IntegrityError: nothing stands in its place.
        """
        at = digest
        while (stone := self.tombstone(at)) is not None:
            if stone.successor is None:
                raise IntegrityError(
                    f"object {digest[:12]}: expected it in {self.root}, found that it was erased with a person "
                    f"(erasure {stone.erasure}). What needs it cannot be restored: illm registry verify lists that."
                )
            at = stone.successor
        return at

    def tombstone(self, digest: str) -> Tombstone | None:
        """What an erased object has left; None for an object that was never erased."""
        _check_digest(digest)
        try:
            return Tombstone(**json.loads(self._stone(digest).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                f"{self._stone(digest)}: expected a tombstone, found another file ({error})"
            ) from error

    def entomb(self, digest: str, stone: Tombstone) -> None:
        """Replace an object by its tombstone; the second time nothing happens."""
        write_atomic(self._stone(digest), canonical_json({"erasure": stone.erasure, "successor": stone.successor}))
        self._failpoint("tombstone written")
        self._file(digest).unlink(missing_ok=True)
        if (self.root / digest).is_dir():
            shutil.rmtree(self.root / digest)
        flush(self.root)
        self._failpoint("object erased")

    def lies(self, digest: str) -> bool:
        """Whether anything lies under this digest, whole or not, erased or not."""
        return self._file(digest).exists() or (self.root / digest).exists()

    def discard(self, digest: str) -> None:
        """Remove an object that nothing refers to; a kill leaves it whole or absent."""
        for path in (self._file(digest), self.root / digest):
            if path.exists():
                remove(self.set_aside(path))
        flush(self.root)

    def set_aside(self, path: Path) -> Path:
        """Rename what lies here so that no reader takes it for an object any more; its new path."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        path.rename(aside)
        flush(self.root)
        self._failpoint("object set aside")
        return aside

    def _used_again(self, digest: str) -> bool:
        """Whether the object is here; if so it is marked as used now, for `gc` to leave it alone, and verified."""
        try:
            path = self.path(digest)
            os.utime(path / MANIFEST if path.is_dir() else path)
        except (IntegrityError, FileNotFoundError):
            return False  # absent, or removed since by a gc that had found it unused for long
        self.verify(digest)
        return True

    def held(self) -> Iterator[str]:
        """Digests of all objects that lie here whole."""
        for path in sorted(self.root.iterdir()):
            name = path.name.removesuffix(".json")
            if re.fullmatch(r"[0-9a-f]{64}", name) and (path.is_file() or is_complete(path)):
                yield name

    def _refuse_erased(self, digest: str) -> None:
        if (stone := self.tombstone(digest)) is not None:
            raise IntegrityError(
                f"object {digest[:12]}: it was erased with a person (erasure {stone.erasure}), and comes again. "
                "Expected what is made from feedback to be made without it: make it from the log as it is now."
            )

    def _stone(self, digest: str) -> Path:
        return self.root / f"{digest}.erased.json"

    def __contains__(self, digest: str) -> bool:
        with contextlib.suppress(IntegrityError):
            return self.path(digest).exists()
        return False

    def _file(self, digest: str) -> Path:
        return self.root / f"{digest}.json"


def _plain_files(folder: Path) -> list[Path]:
    """The files to copy, without the top manifest; refuses what must never be published."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to store, found none")
    entries = sorted(folder.rglob("*"))
    pickles = [path.name for path in entries if path.suffix.lower() in PICKLE_SUFFIXES]
    if pickles:
        raise InputError(
            f"{folder}: expected no pickles, found {', '.join(pickles)}. "
            "Loading one runs code: save weights as .safetensors, and leave optimizer states out."
        )
    odd = [path.name for path in entries if path.is_symlink() or not (path.is_file() or path.is_dir())]
    if odd:
        raise InputError(
            f"{folder}: expected plain files, found links or devices: {', '.join(odd)}. Copy their content."
        )
    files = [path for path in entries if path.is_file() and path != folder / MANIFEST]
    if not files:
        raise InputError(f"{folder}: expected files to store, found an empty folder")
    return files


def remove(path: Path) -> None:
    """Delete a file or a folder; what is not there any more is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_digest(digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise IntegrityError(f"expected an object digest of 64 hex digits, found {digest!r}")
