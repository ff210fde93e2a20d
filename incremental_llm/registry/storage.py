"""What every part of a registry works on: one database, one folder of objects, and how both are let go."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, Connection

from incremental_llm.registry import schema
from incremental_llm.registry.objects import Failpoint, ObjectStore, no_failpoint
from incremental_llm.registry.transaction import Transaction, transaction


class Storage:
    """Database and objects of one registry.

    Args:
        root: folder of the registry; objects lie in `root/objects`.
        url: database; None is SQLite at `root/registry.db`.
        failpoint: called with the name of each durable step, for tests of what a failure there leaves.
    """

    def __init__(self, root: Path, url: str | None = None, *, failpoint: Failpoint = no_failpoint) -> None:
        self.root = root
        self._failpoint = failpoint
        self._objects = ObjectStore(root / "objects", failpoint)
        self._engine = schema.engine_for(url or URL.create("sqlite", database=str(root / "registry.db")))

    @property
    def objects(self) -> Path:
        """The object folder, for `adapters.stack.adapter_paths`."""
        return self._objects.root

    def put_object(self, folder: Path) -> str:
        """Copy a folder into the store, whole and verified; see `ObjectStore.put_folder`."""
        return self._objects.put_folder(folder)

    def put_json(self, value: Any) -> str:
        """Store a JSON value under its `json_digest`."""
        return self._objects.put_json(value)

    def get_json(self, digest: str) -> Any:
        """A stored JSON value; IntegrityError when absent or damaged."""
        return self._objects.get_json(digest)

    def object_path(self, digest: str, *, verified: bool = False) -> Path:
        """Where an object lies; `verified` reads it and compares its digest. IntegrityError when absent or damaged."""
        if verified:
            self._objects.verify(digest)
        return self._objects.path(digest)

    def close(self) -> None:
        """Give back the database connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> AbstractContextManager[Connection]:
        return schema.reading(self._engine)

    def _write(self) -> AbstractContextManager[Transaction]:
        return transaction(self._engine, self._objects, self._failpoint)
