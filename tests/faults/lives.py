"""Random lives of a registry, kills and errors included, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from incremental_llm.errors import CommitError, InputError, PreconditionFailed
from incremental_llm.registry import Registry

from .world import BASE, adapter, open_registry, passing, url_of

FAILPOINTS = (
    "object staged",
    "object published",
    "begun",
    "before write 0",
    "before commit",
    "committing",
    "committed",
)


class Broken(OSError):
    """What a failpoint raises."""


class Lives(RuleBasedStateMachine):
    """`versions` are (adapters, cursor, events inside); refs, quarantine and refusals as they should be."""

    url: str | None = None

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        if self.url is not None:
            (self.folder / "database.url").write_text(self.fresh_url(), encoding="utf-8")
        Registry.create(self.folder / "registry", BASE, url=url_of(self.folder)).close()
        self.registry = open_registry(self.folder, self.step)
        self.versions: list[tuple[tuple[str, ...], int, frozenset[int]]] = [((), 0, frozenset())]
        self.refs = {"production": 0}
        self.events, self.made = 0, 0
        self.refused: Counter[int] = Counter()
        self.attempts: set[tuple[int, ...]] = set()
        self.out: set[int] = set()
        self.break_at: str | None = None

    def fresh_url(self) -> str:
        """The address of a database that is empty."""
        raise NotImplementedError

    def step(self, name: str) -> None:
        if name == self.break_at:
            raise Broken(28, "No space left on device")

    def teardown(self) -> None:
        assert self.registry.verify() == []
        self.registry.close()
        shutil.rmtree(self.folder)

    def stack_on(self, version: int) -> tuple[Any, str]:
        self.made += 1
        digest = self.registry.put_object(adapter(self.folder / f"made{self.made}", self.made))
        stack = self.registry.get(version).stack.plus(digest)
        return stack, passing(self.registry, stack)

    @rule(count=st.integers(1, 3), break_at=st.none() | st.sampled_from(FAILPOINTS))
    def night(self, count: int, break_at: str | None) -> None:
        """Feedback comes and a candidate passes; one that breaks is done again."""
        head = self.refs["production"]
        adapters, cursor, inside = self.versions[head]
        self.events += count
        self.break_at, name = break_at, f"night {self.events}"
        try:
            self.commit(head, name)
        except (CommitError, Broken) as error:
            self.break_at = None
            there = self.registry.committed(name)
            assert (there is not None) == (break_at == "committed"), error
            if there is None:
                self.commit(head, name)
        self.break_at = None
        made = self.registry.head()
        inside = inside | set(range(cursor + 1, self.events + 1))
        self.versions.append(((*adapters, made.stack.adapters[-1]), self.events, inside))
        self.refs["production"] = len(self.versions) - 1

    def commit(self, parent: int, name: str) -> None:
        stack, decision = self.stack_on(parent)
        self.registry.commit_increment(parent=parent, stack=stack, cursor=self.events, decision=decision, attempt=name)

    @rule(back=st.integers(1, 3))
    def too_late(self, back: int) -> None:
        """A job that started from another version is told."""
        stale = self.refs["production"] - back
        if stale >= 0:
            stack, decision = self.stack_on(stale)
            try:
                self.registry.commit_increment(parent=stale, stack=stack, cursor=self.events, decision=decision)
            except PreconditionFailed:
                return
            raise AssertionError("two increments on one parent")

    @rule(count=st.integers(0, 2))
    def rejected(self, count: int) -> None:
        """A candidate is refused; a batch that was refused twice is quarantined."""
        self.events += count
        head = self.refs["production"]
        cursor = self.versions[head][1]
        batch = tuple(seq for seq in range(cursor + 1, self.events + 1) if seq not in self.out)
        if batch:
            if (head, *batch) not in self.attempts:
                self.attempts.add((head, *batch))
                self.refused.update(batch)
            self.registry.record_attempt(parent=head, seqs=batch, reason="worse")
            self.out |= {seq for seq in batch if self.refused[seq] >= 2}

    @rule(to=st.integers(0, 50))
    def rolled_back(self, to: int) -> None:
        to %= len(self.versions)
        head = self.registry.head()
        try:
            self.registry.rollback(to, "rude")
        except InputError:
            assert to in (head.version, head.restores)
            return
        self.out |= self.versions[head.version][2] - self.versions[to][2]
        self.versions.append(self.versions[to])
        self.refs["production"] = len(self.versions) - 1

    @rule(to=st.integers(0, 50), ref=st.sampled_from(["production", "canary"]))
    def moved(self, to: int, ref: str) -> None:
        to %= len(self.versions)
        self.registry.promote(to, ref=ref)
        self.refs[ref] = to

    @rule()
    def opened_again(self) -> None:
        self.registry.close()
        self.registry = open_registry(self.folder, self.step)

    @invariant()
    def agrees(self) -> None:
        snapshots = self.registry.list()
        assert [(s.stack.adapters, s.cursor) for s in snapshots] == [(a, c) for a, c, _ in self.versions]
        assert self.registry.refs() == self.refs
        assert self.registry.quarantined() == self.out
        assert len(self.registry.attempts()) == len(self.attempts)


def live(examples: int, steps: int, machine: type[Lives] = Lives) -> None:
    """So many lives of so many steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
