"""One increment leaves production: what came after it is trained again without it, and its events are quarantined.

    plan = plan_drop(registry, 3)       which versions would be made again; nothing is changed
    Dropping(...).run()                 makes them, each with its own gate, and the last against production

The one design fact: it is the rebuild of an erasure with other events left out. The newest increment needs no training:
dropping it is a rollback to the version that it stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from incremental_llm.base_models import ResolvedBase
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.gate import Decision
from incremental_llm.pipeline import Progress
from incremental_llm.registry import Registry, consumed, increments_in
from incremental_llm.remaking import Remaking

LINE = "cherry-drop"


@dataclass(frozen=True)
class DropPlan:
    """What dropping version `dropped` from production means.

    `seqs` are the events to quarantine, `again` the versions to make again, oldest first, from version `start` on.
    `head` is what production is now.
    """

    dropped: int
    head: int
    start: int
    seqs: tuple[int, ...]
    again: tuple[int, ...]


@dataclass(frozen=True)
class DropReport:
    """`made` maps each version that was made again to its new one, `left_out` the others to the reason.

    `version` is what serves now, None where the gate refused the line; `decision` is that of the whole line, None where
    nothing was trained.
    """

    plan: DropPlan
    made: Mapping[int, int] = field(default_factory=dict)
    left_out: Mapping[int, str] = field(default_factory=dict)
    decision: Decision | None = None
    version: int | None = None


def plan_drop(registry: Registry, version: int | str) -> DropPlan:
    """What would be made again.

    Raises:
        InputError: not an increment that production stands on.
    """
    dropped, head, snapshots = registry.get(version), registry.head(), registry.list()
    standing = increments_in(snapshots, head.version)
    if dropped.version not in standing:
        raise InputError(
            f"cherry-drop {dropped.version}: expected an increment that production {head.version} stands on, found "
            f"{'one it does not' if dropped.kind == 'increment' else dropped.kind}. Those are "
            f"{', '.join(map(str, reversed(standing))) or 'none'}."
        )
    start, seqs = dropped.parent, tuple(consumed(snapshots, dropped.version))
    if not seqs:
        raise InputError(
            f"cherry-drop {dropped.version}: expected an increment that read feedback, found one without, such as "
            "several adapters made one. Go back to the version before it: illm registry rollback."
        )
    assert start is not None
    again = tuple(sorted(one for one in standing if one > dropped.version and consumed(snapshots, one)))
    return DropPlan(dropped.version, head.version, start, seqs, again)


@dataclass(frozen=True)
class Dropping:
    """What a drop works on; `train` is as for `pipeline.judge_increment`."""

    registry: Registry
    store: FeedbackStore
    config: RunConfig
    base: ResolvedBase
    train: Callable[..., Any]
    progress: Progress

    def run(self, version: int | str, reason: str) -> DropReport:
        """Drop it; interrupted, the same call goes on. Where the gate refuses, production and its events stay.

        Raises:
            InputError: not an increment that production stands on.
            PreconditionFailed: production moved meanwhile.
        """
        self.registry.refuse_pending()
        plan = plan_drop(self.registry, version)
        if not plan.again:
            back = self.registry.rollback(plan.start, reason, expected=plan.head)
            return DropReport(plan, version=back.version)
        without = frozenset(plan.seqs)
        parts = (self.registry, self.store, self.config, self.base, self.train, self.progress)
        line = Remaking(*parts, LINE, without)
        line.begin(plan.start, f"from {plan.start}, for production {plan.head} without increment {plan.dropped}")
        made, left_out = line.nights(self.registry.list(), plan.again)
        head, last = self.registry.get(plan.head), self.registry.head(LINE)
        decision = line.judged(head, last)
        if not decision.passed:
            return DropReport(plan, made, left_out, decision)
        why = f"increment {plan.dropped} was dropped: {reason}"
        self.registry.promote(last.version, expected=plan.head, reason=why, quarantine=plan.seqs)
        return DropReport(plan, made, left_out, decision, last.version)
