"""A registry of toy adapters, and the two things a night brings to it: a stack and a decision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.registry import Attempt, Registry, Snapshot

BASE = BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32)


class World:
    """A registry below `root` and shortcuts to drive it."""

    def __init__(
        self, root: Path, failpoint: Callable[[str], None] = lambda name: None, url: str | None = None
    ) -> None:
        self.root = root
        self.url = url
        self.base = Stack(base=BASE)
        root.mkdir(parents=True, exist_ok=True)
        self.registry = Registry.create(root / "registry", self.base, url=url, failpoint=failpoint)
        self._made = 0

    def open(self, failpoint: Callable[[str], None] = lambda name: None) -> Registry:
        return Registry.open(self.root / "registry", url=self.url, failpoint=failpoint)

    def change(self, statement: str, **values: object) -> None:
        """Change rows behind the registry's back."""
        with self.registry._engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("SET TRANSACTION READ WRITE") if self.url else None
            connection.execute(text(statement), values) if values else connection.exec_driver_sql(statement)

    @property
    def environment(self) -> dict[str, str]:
        """For scripts of their own: REGISTRY_URL is the database, unless it is in the folder."""
        return {**os.environ, **({"REGISTRY_URL": self.url} if self.url else {})}

    def folder(self, content: str) -> Path:
        self._made += 1
        folder = self.root / f"made{self._made}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(content)
        return folder

    def candidate(self, parent: Snapshot, content: str | None = None) -> Stack:
        return parent.stack.plus(self.registry.put_object(self.folder(content or f"weights {self._made}")))

    def decision(self, stack: Stack, passed: bool = True) -> str:
        return self.registry.put_json({"passed": passed, "stack_digest": stack.digest, "reasons": ["measured"]})

    def night(self, events: int = 10, **fields: object) -> Snapshot:
        """Promote one more adapter that consumed `events` events."""
        head = self.registry.head()
        stack = self.candidate(head)
        fields = {"decision": self.decision(stack), "cursor": head.cursor + events, **fields}
        return self.registry.commit_increment(parent=head.version, stack=stack, **fields)

    def rejected(self, seqs: range, **fields: object) -> Attempt:
        """Record one refused candidate for these events."""
        head = self.registry.head()
        decision = self.decision(head.stack, passed=False)
        return self.registry.record_attempt(parent=head.version, seqs=seqs, reason="worse", decision=decision, **fields)


BOTH = {"test_store", "test_attempts", "test_faults", "test_naming", "test_retention", "test_verify"}
"""Modules that run on SQLite and on PostgreSQL, but for their tests marked `sqlite`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in BOTH:
        only = metafunc.definition.get_closest_marker("sqlite")
        metafunc.parametrize("database", ["sqlite"] if only else ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str | None:
    """URL of an empty database; None: SQLite in the registry's folder."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    return str(request.getfixturevalue("postgres_schema")())


@pytest.fixture
def world(tmp_path: Path, database: str | None) -> Iterator[World]:
    made = World(tmp_path, url=database)
    yield made
    made.registry.close()


@pytest.fixture
def make_world() -> type[World]:
    return World
