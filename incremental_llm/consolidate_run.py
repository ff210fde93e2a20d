"""Several adapters of production become one: a candidate without training, judged like any other.

    plan_consolidation(...)     how large it would be, and how far from what the stack computes; nothing is measured
    consolidate(...)            measured on new and old suites, judged, and committed if it passed
    consolidation_due(...)      why a nightly run should do so now

The one design fact: it has nothing new to show. The claim is the one of a retraining without new feedback, that no
suite is worse and no accepted correction lost, and the gate is the same. A refused one is no version, and no attempt on
anybody's feedback, so no event comes nearer to its quarantine; its adapter stays as an object that nothing refers to.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from incremental_llm.adapters.stack import Stack, adapter_paths
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import json_digest
from incremental_llm.claims import KEPT, LEARNED, claim_of
from incremental_llm.config import ConsolidationSettings, RunConfig
from incremental_llm.errors import InputError
from incremental_llm.evaluation import EvaluationReport, Suite
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.feedback import FeedbackStore
from incremental_llm.gate import Decision
from incremental_llm.gate.feasible import check_measured
from incremental_llm.pending import (
    Pending,
    accepted_corrections,
    check_roles,
    left_out,
    policy_changes,
    still_true,
)
from incremental_llm.pipeline import Progress, verdict
from incremental_llm.registry import Registry, Snapshot
from incremental_llm.replay import ReplayBuffer

if TYPE_CHECKING:
    from incremental_llm.adapters.lora import LoraAdapter


@dataclass(frozen=True)
class ServingCost:
    """What adapters cost to serve: the largest summed rank of a module, and the bytes of their weights."""

    adapters: int
    rank: int
    bytes: int


@dataclass(frozen=True)
class ConsolidationPlan:
    """The last `len(ranks)` adapters of a version as one; `ranks` are their largest, oldest first.

    `relative_error` is the Frobenius distance from what the method gives, which for `sum` is what the stack computes;
    `worst` is the module that is farthest, with its own. `scale` is the newest adapter's.
    """

    version: int
    method: str
    scale: float
    ranks: tuple[int, ...]
    before: ServingCost
    after: ServingCost
    relative_error: float
    worst: tuple[str, float]

    @property
    def sentence(self) -> str:
        """What becomes of what, in words."""
        scaled = f", the newest at {self.scale:g}" if self.scale != 1 else ""
        return (
            f"{self.before.adapters} adapters as one of rank {self.after.rank} by {self.method}{scaled}, "
            f"relative error {self.relative_error:.2g}"
        )


@dataclass(frozen=True)
class Consolidation:
    """A candidate that was measured and judged. `version` is None where the gate refused it, and nothing has changed.

    `scores` are the mean scores over all suites, by the newest adapter's scale; `plan` is of the best.
    """

    plan: ConsolidationPlan
    scores: dict[float, float]
    stack: Stack
    checks: Decision
    production: EvaluationReport
    candidate: EvaluationReport
    version: int | None

    @property
    def decision(self) -> str:
        """As of a run."""
        return "rejected" if self.version is None else "promoted"


@dataclass(frozen=True)
class _Tried:
    """One candidate, at one scale of the newest adapter."""

    plan: ConsolidationPlan
    stack: Stack
    report: EvaluationReport

    @property
    def score(self) -> float:
        return statistics.fmean(suite.score or 0.0 for suite in self.report.suites.values())


def plan_consolidation(registry: Registry, config: RunConfig, last: int | None = None) -> ConsolidationPlan:
    """What `consolidate` would make of the `last` adapters, by default all, at scale 1; nothing is written.

    Raises:
        InputError: production has not so many adapters, or fewer than two.
    """
    head, folders = _replaced(registry, last)
    return _merged(head, folders, config.consolidation, 1.0)[1]


def consolidate(
    *,
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    base: ResolvedBase,
    suites: Sequence[Suite],
    last: int | None = None,
    progress: Progress,
) -> Consolidation:
    """Make the `last` adapters of production one, by default all, and let it take their place if the gate passes it.

    Of several scales of the newest adapter the one with the best mean score is judged, of equals the one nearest to 1.
    It was chosen by the suites that judge it, so each interval gets its share of the gate's doubt (Bonferroni): of four
    scales, at a confidence of 95 %, each has 98.75 %.

    Raises:
        InputError: production has not so many adapters, or fewer than two; roles that contradict; or a suite that is
            too small for its margin.
        PreconditionFailed: production has moved since; nothing was changed.
    """
    told = config.consolidation
    head, folders = _replaced(registry, last)
    todo = _nothing_new(registry, store, config, head, len(folders))
    strict = _as_strict_as(config, len(told.scales))
    strict.gate.check_names((*config.suites.names, KEPT, LEARNED))
    for suite in suites:
        registry.record_suite(suite.name, suite.version, suite.contract)
    superseded = check_roles(registry, strict, suites, todo)
    claim = claim_of(todo, (), still_true(todo.accepted, todo.superseded), strict, suites, superseded)
    asked = (*suites, *claim.corrections)
    measured = Measurement(config.workspace / "evaluations", base.folder, registry.objects, progress)
    production = measured.report(head.stack, asked, f"production v{head.version}")
    check_measured(production, f"production v{head.version}")
    tried = []
    for scale in told.scales:
        progress(f"merging {len(folders)} adapters, the newest at {scale:g}", 0, 1, None)
        one, plan = _merged(head, folders, told, scale)
        stack = todo.below.plus(_stored(one, plan, folders, registry, config.workspace, base))
        tried.append(_Tried(plan, stack, measured.report(stack, asked, f"the one adapter at {scale:g}")))
    best = max(tried, key=lambda one: (one.score, -abs(one.plan.scale - 1)))
    checks = verdict(head.stack, production, best.stack, best.report, strict, claim, superseded)
    return Consolidation(
        plan=best.plan,
        scores={one.plan.scale: one.score for one in tried},
        stack=best.stack,
        checks=checks,
        production=production,
        candidate=best.report,
        version=_committed(registry, config, head, best, checks) if checks.passed else None,
    )


def consolidation_due(registry: Registry, config: RunConfig) -> str:
    """Why the recipe has production's adapters become one now; empty where it has not."""
    from incremental_llm.adapters.lora import read_adapter
    from incremental_llm.handoff import VLLM_RANKS

    told, head = config.consolidation, registry.head()
    count = len(head.stack.adapters)
    if not told.automatic or count < 2:
        return ""
    if told.after is not None and count > told.after:
        return f"{count} adapters, more than consolidation.after = {told.after}"
    folders = adapter_paths(head.stack, registry.objects)
    rank = _summed_rank([read_adapter(folder).ranks for folder in folders])
    most = VLLM_RANKS[-1] if told.max_rank is None else told.max_rank
    return f"{count} adapters, of rank {rank} in sum, more than {most}" if rank > most else ""


def _replaced(registry: Registry, last: int | None) -> tuple[Snapshot, tuple[Path, ...]]:
    """Production, and the folders of the adapters that are to become one."""
    head = registry.head()
    found = len(head.stack.adapters)
    count = found if last is None else last
    if not 2 <= count <= found:
        raise InputError(
            f"consolidate: expected two adapters or more to make one of, found {count} of the {found} of production "
            f"v{head.version}. Nothing was changed."
        )
    return head, adapter_paths(head.stack, registry.objects)[found - count :]


def _nothing_new(registry: Registry, store: FeedbackStore, config: RunConfig, head: Snapshot, replaced: int) -> Pending:
    """An increment that starts below the adapters it replaces, and has no events."""
    below = head.stack.adapters[: len(head.stack.adapters) - replaced]
    return Pending(
        head=head,
        below=head.stack.model_copy(update={"adapters": below}),
        events=(),
        context={},
        changes=policy_changes(store, head.cursor, config, left_out(registry)),
        buffer=ReplayBuffer(),
        accepted=accepted_corrections(registry, head),
        until=head.cursor,
    )


def _as_strict_as(config: RunConfig, candidates: int) -> RunConfig:
    """The recipe with its gate's doubt divided among so many candidates."""
    if candidates == 1:
        return config
    confidence = 1 - (1 - config.gate.confidence) / candidates
    return config.model_copy(update={"gate": config.gate.model_copy(update={"confidence": confidence})})


def _merged(
    head: Snapshot, folders: Sequence[Path], settings: ConsolidationSettings, scale: float
) -> tuple[LoraAdapter, ConsolidationPlan]:
    """One adapter for those of `folders`, and what it costs and loses."""
    from incremental_llm.adapters.lora import WEIGHTS_FILE, read_adapter
    from incremental_llm.adapters.merge_methods import merge

    adapters = [read_adapter(folder) for folder in folders]
    one, loss = merge(adapters, settings, [*[1.0] * (len(adapters) - 1), scale])
    stored = sum((folder / WEIGHTS_FILE).stat().st_size for folder in folders)
    written = sum(factor.numel() * 4 for pair in one.modules.values() for factor in pair)  # in fp32
    plan = ConsolidationPlan(
        version=head.version,
        method=settings.method,
        scale=scale,
        ranks=tuple(max(adapter.ranks.values()) for adapter in adapters),
        before=ServingCost(len(folders), _summed_rank([adapter.ranks for adapter in adapters]), stored),
        after=ServingCost(1, max(one.ranks.values()), written),
        relative_error=loss.relative_error,
        worst=max(loss.modules.items(), key=lambda module: module[1]),
    )
    return one, plan


def _stored(
    one: LoraAdapter,
    plan: ConsolidationPlan,
    folders: Sequence[Path],
    registry: Registry,
    workspace: Path,
    base: ResolvedBase,
) -> str:
    """The digest of the one adapter as an object, with the newest one's records beside it."""
    from incremental_llm.training.growth import write_consolidated

    # Where an erasure removes it if this process is killed; an object that no version has goes with one as well.
    with tempfile.TemporaryDirectory(prefix=".consolidation-", suffix=".tmp", dir=workspace) as scratch:
        out = Path(scratch) / "adapter"
        write_consolidated(folders, one, out, base.folder.name, plan.sentence, replaces=len(folders))
        return registry.put_object(out)


def _committed(registry: Registry, config: RunConfig, head: Snapshot, best: _Tried, checks: Decision) -> int:
    recipe = config.model_copy(update={"process": "increment"}).recipe  # not trained from the base, whatever nights are
    snapshot = registry.commit_increment(
        parent=head.version,
        stack=best.stack,
        replaces=best.plan.before.adapters,
        cursor=head.cursor,
        attempt=json_digest({"consolidates": head.hash, "stack": best.stack.digest}),
        replay=head.replay,
        corrections=head.corrections,
        report=registry.put_json(best.report.model_dump(mode="json")),
        decision=registry.put_json(checks.model_dump(mode="json")),
        recipe=registry.put_json(recipe),
        note=f"consolidated: {best.plan.sentence}",
    )
    return snapshot.version


def _summed_rank(ranks: Sequence[Mapping[str, int]]) -> int:
    """The largest rank of a module once the adapters are concatenated."""
    names = {name for each in ranks for name in each}
    return max(sum(each.get(name, 0) for each in ranks) for name in names)
