"""The registry: snapshots, refs, attempts and quarantine in one database, objects in one folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.artifacts import flush
from incremental_llm.errors import BaseModelError, InputError
from incremental_llm.registry import examples, repair, retention, schema
from incremental_llm.registry.erasure import Erasing
from incremental_llm.registry.exchange import PushReport, Remote, pull, push
from incremental_llm.registry.naming import Naming
from incremental_llm.registry.objects import Failpoint, no_failpoint
from incremental_llm.registry.queries import read_snapshot
from incremental_llm.registry.repair import Repair
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.summaries import write_all_summaries
from incremental_llm.registry.transaction import transaction
from incremental_llm.registry.updates import PRODUCTION, AddSnapshot, MoveRef, describe_base, same_base
from incremental_llm.registry.usage import Usage, usage
from incremental_llm.registry.verify import Problems, verify

__all__ = ["PRODUCTION", "Registry"]


class Registry(Naming):
    """Use `create` once and `open` afterwards; both are context managers.

    Args:
        root: folder of the registry; objects lie in `root/objects`.
        url: database; None is SQLite at `root/registry.db`.
        failpoint: called with the name of each durable step, for tests of what a failure there leaves.
    """

    @classmethod
    def create(
        cls,
        root: Path,
        stack: Stack,
        *,
        url: str | None = None,
        cursor: int = 0,
        note: str = "",
        failpoint: Failpoint = no_failpoint,
    ) -> Registry:
        """A new registry: version 0 is the base itself, and `production` points to it.

        Raises:
            InputError: there is a registry already, or the stack has adapters.
        """
        if stack.adapters:
            raise InputError(f"{root}: expected a base without adapters for version 0, found {len(stack.adapters)}")
        (root / "objects").mkdir(parents=True, exist_ok=True)
        registry = cls(root, url, failpoint=failpoint)

        def begin(connection: Connection) -> None:
            if schema.exists(connection):
                raise InputError(f"{root}: expected no registry, found one: open it, or choose another folder")
            schema.create(connection)

        with transaction(registry._engine, registry._objects, failpoint, begin) as tx:
            first = Snapshot.sealed(version=0, kind="init", time=tx.time, stack=stack, cursor=cursor, note=note)
            tx.add(AddSnapshot(snapshot=first), MoveRef(name=PRODUCTION, version=0, reason="created"))
        flush(root)
        return registry

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        url: str | None = None,
        base: BaseRef | None = None,
        failpoint: Failpoint = no_failpoint,
    ) -> Registry:
        """The registry at `root`; with `base`, only if it was made for that base.

        Raises:
            InputError: there is no registry.
            BaseModelError: weights or chat template differ from the registry's.
        """
        if url is None and not (root / "registry.db").is_file():
            raise InputError(f"{root}: expected a registry, found none: make one with `illm init` or Registry.create")
        registry = cls(root, url, failpoint=failpoint)
        with registry._read() as connection:
            there = schema.exists(connection)
            old = there and schema.format_of(connection) in schema.EARLIER
        if old:
            registry._upgrade()
        with registry._read() as connection:
            first = read_snapshot(connection, 0) if there else None
        if first is None:
            raise InputError(f"{root}: expected a registry, found an empty database: make one with `illm init`")
        held = first.stack.base
        if base is not None and not same_base(held, base):
            raise BaseModelError(
                f"{root}: expected {describe_base(held)} as when the registry was made, found {describe_base(base)}. "
                "Adapters fit one base only: use that base again, or make a new registry for this one."
            )
        return registry

    @classmethod
    def exists(cls, root: Path, url: str | None = None) -> bool:
        """Whether there is a registry; a kill while one is made leaves an empty database, which is none."""
        if url is None and not (root / "registry.db").is_file():
            return False
        with cls(root, url) as registry, registry._read() as connection:
            return schema.exists(connection)

    def _upgrade(self) -> None:
        """From an earlier format, whoever of several processes comes first."""
        with schema.writing(self._engine) as connection, connection.begin():
            found = schema.lock(connection)
            if found == "1":
                examples.upgrade(connection, self._objects)
            elif found in schema.EARLIER:
                schema.add_tables(connection)
            if found in schema.EARLIER:
                write_all_summaries(connection)

    def erasing(self) -> Erasing:
        """The steps by which a person is erased; `incremental_llm.erase` takes them in their order."""
        return Erasing(self._engine, self._objects, self._failpoint)

    def verify(self) -> Problems:
        """Every broken promise, in words; empty when all is well. Reads every object."""
        with self._read() as connection:
            return verify(connection, self._objects)

    def du(self, grace: timedelta = retention.GRACE) -> Usage:
        """Bytes by kind of object and by version, and what `gc` would free."""
        garbage = self.plan_gc(grace).bytes
        with self._read() as connection:
            return usage(connection, self._objects, self.root, garbage)

    def plan_gc(self, grace: timedelta = retention.GRACE) -> retention.Collected:
        """What `gc` would remove now; nothing is changed."""
        return retention.plan(self._engine, self._objects, _checked(grace), datetime.now(UTC))

    def gc(self, grace: timedelta = retention.GRACE) -> retention.Collected:
        """Remove objects that no version, attempt or erasure has and that nobody has put for as long as `grace`.

        A run puts its adapter long before its commit: `grace` has to be longer than that, or no run may be going.

        Raises:
            PendingErasureError: an erasure has not ended.
            IntegrityError: a version cannot be read; nothing was removed.
        """
        now = datetime.now(UTC)
        return retention.collect(self._engine, self._objects, _checked(grace), now, self._failpoint)

    def plan_repair(self, source: Path | None = None, grace: timedelta = retention.GRACE) -> tuple[Repair, ...]:
        """What `repair` would do; nothing is changed."""
        return repair.plan(self._engine, self._objects, self.root, source, _checked(grace))

    def repair(self, source: Path | None = None, grace: timedelta = retention.GRACE) -> tuple[Repair, ...]:
        """Remove unfinished folders older than `grace`, and take damaged or missing objects from another copy.

        Raises:
            InputError: `source` is no folder.
            IntegrityError: a version cannot be read: the database itself has to be restored.
        """
        return repair.repair(self._engine, self._objects, self.root, source, _checked(grace), self._failpoint)

    def push(self, remote: Remote, *, dry_run: bool = False) -> PushReport:
        """Publish to a folder or a Hub repository (`remote_at`); see `exchange.push`."""
        return push(self._engine, self._objects, remote, dry_run=dry_run)

    @classmethod
    def pull(
        cls, root: Path, remote: Remote, *, url: str | None = None, failpoint: Failpoint = no_failpoint
    ) -> Registry:
        """The registry at `root`, made or brought to what is published; see `exchange.pull`."""
        (root / "objects").mkdir(parents=True, exist_ok=True)
        registry = cls(root, url, failpoint=failpoint)
        try:
            pull(registry._engine, registry._objects, remote, failpoint)
        except BaseException:
            registry.close()
            raise
        return registry


def _checked(grace: timedelta) -> timedelta:
    if grace < timedelta(0):
        raise InputError(f"gc: expected a grace period of 0 or more, found {grace}")
    return grace
