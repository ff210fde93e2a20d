"""Random lives of a registry against a model of a few lines."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from incremental_llm.errors import InputError, PreconditionFailed


def machine(make_world):
    class Lives(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = tempfile.TemporaryDirectory()
            self.world = make_world(Path(self.folder.name))
            self.registry = self.world.registry
            self.versions = [((), 0, frozenset())]  # adapters, cursor, events inside
            self.production = 0
            self.events = 0
            self.rejections: Counter[int] = Counter()
            self.attempts: set[tuple[int, ...]] = set()
            self.out: set[int] = set()

        def teardown(self) -> None:
            assert self.registry.verify() == []
            self.registry.close()
            self.folder.cleanup()

        @property
        def batch(self) -> tuple[int, ...]:
            cursor = self.versions[self.production][1]
            return tuple(seq for seq in range(cursor + 1, self.events + 1) if seq not in self.out)

        @rule(count=st.integers(1, 3))
        def feedback(self, count: int) -> None:
            self.events += count

        @precondition(lambda self: self.batch)
        @rule(again=st.booleans())
        def promoted(self, again: bool) -> None:
            adapters, cursor, inside = self.versions[self.production]
            snapshot = self.world.night(events=self.events - cursor)
            inside = inside | set(range(cursor + 1, self.events + 1))
            self.versions.append(((*adapters, snapshot.stack.adapters[-1]), self.events, inside))
            stale, self.production = self.production, snapshot.version
            if again:  # a job that started before is told
                stack = self.world.candidate(self.registry.get(stale))
                try:
                    self.registry.commit_increment(
                        parent=stale, stack=stack, cursor=self.events, decision=self.world.decision(stack)
                    )
                    raise AssertionError("two increments on one parent")
                except PreconditionFailed:
                    pass

        @precondition(lambda self: self.batch)
        @rule()
        def refused(self) -> None:
            key = (self.production, *self.batch)
            if key not in self.attempts:
                self.attempts.add(key)
                self.rejections.update(self.batch)
            self.world.rejected(self.batch)
            self.out |= {seq for seq, count in self.rejections.items() if count >= 2}

        @rule(data=st.data())
        def rolled_back(self, data: st.DataObject) -> None:
            to = data.draw(st.integers(0, len(self.versions) - 1))
            head = self.registry.head()
            try:
                self.registry.rollback(to, "x")
            except InputError:
                assert to in (head.version, head.restores)
                return
            self.out |= self.versions[self.production][2] - self.versions[to][2]
            self.versions.append(self.versions[to])
            self.production = len(self.versions) - 1

        @rule(data=st.data())
        def moved(self, data: st.DataObject) -> None:
            self.production = data.draw(st.integers(0, len(self.versions) - 1))
            self.registry.promote(self.production)

        @invariant()
        def agrees(self) -> None:
            snapshots = self.registry.list()
            assert [(s.stack.adapters, s.cursor) for s in snapshots] == [(a, c) for a, c, _ in self.versions]
            assert [s.version for s in snapshots] == list(range(len(snapshots)))
            assert self.registry.refs() == {"production": self.production}
            assert self.registry.quarantined() == self.out
            assert len(self.registry.attempts()) == len(self.attempts)

    return Lives


def test_random_lives_agree_with_the_model(make_world):
    run_state_machine_as_test(
        machine(make_world),
        settings=settings(
            max_examples=8,
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
