"""Nights that are made again on a ref of their own, and the end of that line against production.

    line.begin(start, why)              a ref that serves nobody, where the line starts
    line.nights(snapshots, versions)    each with its own recipe and gate, from the events that count
    line.judged(head, line's end)       no suite and no correction may be worse

The one design fact: the nights of a line are ordinary increments. One that fails its gate leaves its events to the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from incremental_llm import pipeline
from incremental_llm.base_models import ResolvedBase
from incremental_llm.claims import KEPT
from incremental_llm.config import RunConfig, parse_config
from incremental_llm.errors import NothingToTrainError
from incremental_llm.evaluation import Suite, load_suites
from incremental_llm.evaluation.corrections import correction_suite
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.pseudonyms import is_tombstone
from incremental_llm.gate import Decision, decide
from incremental_llm.pending import Pending, accepted_corrections, left_out, pending_from, policy_changes
from incremental_llm.pending import superseded_suites as superseded_by
from incremental_llm.pipeline import Progress
from incremental_llm.registry import Registry, Snapshot
from incremental_llm.retrain import retraining_from


@dataclass(frozen=True)
class Remaking:
    """A line: the ref `line`, and the seqs of events that its nights go `without`; `train` as for the pipeline."""

    registry: Registry
    store: FeedbackStore
    config: RunConfig
    base: ResolvedBase
    train: Callable[..., Any]
    progress: Progress
    line: str
    without: frozenset[int] = frozenset()

    def begin(self, start: int, why: str) -> None:
        """Put the line where it starts, unless an interrupted call has begun the same one."""
        begun = self.line in self.registry.refs() and any(m.reason == why for m in self.registry.history(self.line))
        if not begun:
            self.registry.begin_line(self.line, start, why)

    def nights(self, snapshots: Sequence[Snapshot], nights: Sequence[int]) -> tuple[dict[int, int], dict[int, str]]:
        """Make these versions again on the line: each to its new one, and those that were left out to the reason."""
        made: dict[int, int] = {}
        left_out: dict[int, str] = {}
        for night in nights:
            line, until = self.registry.head(self.line), snapshots[night].cursor
            if until <= line.cursor:  # an interrupted call has made it
                made[night] = line.version
                continue
            self.progress(f"making version {night} again", nights.index(night), len(nights), None)
            config = self._recipe_of(snapshots[night])
            try:
                judged = pipeline.judge_increment(
                    registry=self.registry,
                    store=self.store,
                    config=config,
                    base=self.base,
                    suites=load_suites(config.suites.folder, config.suites.names),
                    workspace=config.workspace,
                    train=self.train,
                    progress=self.progress,
                    read=partial(self._read, most=until),
                )
            except NothingToTrainError as nothing:
                left_out[night] = str(nothing)
                continue
            if judged.checks.passed:
                outcome = pipeline.commit_increment(self.registry, judged, config, self.line)
                assert outcome.version is not None
                made[night] = outcome.version
            else:  # no attempt is recorded: its events have passed a gate once, and this is no try of theirs
                left_out[night] = "; ".join(judged.reasons)
        return made, left_out

    def _recipe_of(self, snapshot: Snapshot) -> RunConfig:
        """The recipe that a version was made by, with today's places on the disk."""
        if snapshot.recipe is None:
            return self.config
        tree = self.registry.get_json(snapshot.recipe)
        tree["workspace"], tree["database"] = str(self.config.workspace), self.config.database
        tree["registry"] = self.config.registry
        tree["suites"]["folder"] = str(self.config.suites.folder)
        return parse_config(tree, source=f"the recipe of version {snapshot.version}")

    def judged(self, head: Snapshot, last: Snapshot) -> Decision:
        """The end of the line against production: it has nothing new to show, and nothing may be worse.

        It is held to the corrections that production stands on, but for what was erased or dropped: a night that the
        line left out is missed here.
        """
        config, roles = self.config, self.config.suites
        changes = policy_changes(self.store, head.cursor, config, left_out(self.registry))
        gone = self._dropped() | {name for change in changes for name in change.supersedes}
        accepted = [
            one
            for one in accepted_corrections(self.registry, head)
            if gone.isdisjoint((one.event_id, one.interaction_id))
        ]
        suites = load_suites(roles.folder, roles.names)
        kept = correction_suite(KEPT, accepted)
        asked: tuple[Suite, ...] = (*suites, kept) if kept else suites
        measured = Measurement(config.workspace / "evaluations", self.base.folder, self.registry.objects, self.progress)
        return decide(
            production=measured.report(head.stack, asked, f"production v{head.version}"),
            candidate=measured.report(last.stack, asked, f"what was made again, v{last.version}"),
            candidate_stack=last.stack.digest,
            production_stack=head.stack.digest,
            policy=config.gate,
            new_suites=(),
            old_suites=(*roles.old, *roles.new),
            corrections=(KEPT,) if kept else (),
            superseded_suites=superseded_by(suites, changes),
            unguarded_suites=roles.watch,
            gain_needed=False,
        )

    def _dropped(self) -> frozenset[str]:
        """Ids of the events that the line goes without."""
        if not self.without:
            return frozenset()
        first, last = min(self.without), max(self.without)
        stored = self.store.read(after=first - 1, until=last)
        return frozenset(one.event.id for one in stored if one.seq in self.without)

    def _read(
        self, registry: Registry, store: FeedbackStore, config: RunConfig, until: int | None, *, most: int
    ) -> Pending:
        """What the next night of the line starts from: the events since the line's version that count, up to `most`."""
        head, out = registry.head(self.line), left_out(registry) | self.without
        until = most if until is None else min(until, most)
        retrain = config.process == "retrain"
        log = store.read(after=0 if retrain else head.cursor, until=until)
        events = tuple(stored for stored in log if stored.seq not in out and not is_tombstone(stored.event))
        if not any(stored.seq > head.cursor for stored in events):
            raise NothingToTrainError(f"nothing is left of the events {head.cursor + 1} to {until}")
        return (retraining_from if retrain else pending_from)(registry, store, config, head, events, until)
