"""What a workspace has done, as report data: one `Night` a run, and the matrix over all promoted versions.

The one design fact: a run writes its own night beside its results just before it commits, and a night counts once the
registry holds its candidate. The matrix is read from the evaluation reports that the registry holds. So a page can be
made again at any time, and shows all that was decided and nothing that was not measured.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import write_json
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation import EvaluationReport, Suite, flips, matrix_of, paired_bootstrap
from incremental_llm.pipeline import Judged
from incremental_llm.registry import Registry, Snapshot
from incremental_llm.report.data import (
    Answer,
    Cell,
    CheckRow,
    Difference,
    LineageRow,
    Night,
    ReportData,
    Role,
    SuiteRow,
)

log = logging.getLogger(__name__)

NIGHT = "night.json"
_ANSWERS = 6  # before/after answers shown of each kind: learned, lost, still wrong


def night_of(outcome: Judged, label: str, suites: Sequence[Suite], refused_lines: Sequence[str]) -> Night:
    """A run as the report shows it."""
    return Night(
        label=label,
        version=outcome.number if outcome.checks.passed else None,
        decision="promoted" if outcome.checks.passed else "rejected",
        reasons=outcome.reasons,
        checks=tuple(
            CheckRow(
                c.name,
                c.passed,
                c.before,
                c.after,
                c.difference,
                c.low,
                c.high,
                c.n,
                c.bound,
                c.reason,
            )
            for c in outcome.checks.checks
        ),
        seconds=outcome.seconds,
        tokens=outcome.tokens,
        stage_seconds=outcome.stage_seconds,
        losses={phase.objective: list(phase.losses) for phase in outcome.training.phases if phase.losses},
        anchor_kl=[value for phase in outcome.training.phases for value in phase.anchor_kl],
        events={kind: sum(counts.values()) for kind, counts in outcome.dataset.outcomes.items()},
        examples={
            "sft": len(outcome.dataset.sft),
            "pair": len(outcome.dataset.pairs),
            "unpaired": len(outcome.dataset.unpaired),
        },
        drops=_drops(outcome),
        mixture=". ".join((outcome.replay.rstrip("."), *outcome.notes)),
        refused_lines=tuple(refused_lines),
        answers=_answers(outcome, suites),
    )


def write_night(outcome: Judged, night: Night) -> None:
    """Keep a night and production's report in the run's folder."""
    write_json(outcome.folder / "production.json", outcome.production.model_dump(mode="json"))
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    write_json(outcome.folder / NIGHT, {"time": time, "candidate": outcome.stack.digest, "night": asdict(night)})


def read_nights(registry: Registry, workspace: Path) -> tuple[Night, ...]:
    """Every night that was decided, oldest first: those whose candidate the registry took in or refused."""
    decided = {s.stack.digest for s in registry.list()} | {a.stack_digest for a in registry.attempts()}
    nights: list[tuple[str, Night]] = []
    for path in (workspace / "runs").glob(f"*/{NIGHT}"):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["candidate"] in decided:
                nights.append((entry["time"], _night(entry["night"])))
        except (ValueError, TypeError, KeyError) as error:  # a report is no reason to fail the night that is being made
            log.warning("%s: expected the record of a night, found another (%r): it is not shown", path, error)
    return tuple(night for _, night in sorted(nights, key=lambda dated: dated[0]))


def history(
    registry: Registry,
    workspace: Path,
    *,
    title: str,
    seed: int,
    superseded: Sequence[str] = (),
    peak_memory_bytes: int | None = None,
    sources: Mapping[str, str] | None = None,
) -> ReportData:
    """Everything a workspace holds, as one report; versions that a rollback undid are in the lineage only."""
    snapshots = registry.list()
    standing = _standing(registry, snapshots)
    reports = version_reports(registry, workspace, standing)
    introduced = _introduced(registry, standing)
    return ReportData(
        title=title,
        base=snapshots[0].stack.base.name,
        seed=seed,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine(),
        versions=tuple(reports),
        suites=suite_rows(reports, introduced, superseded),
        metrics=metrics_of(reports, introduced, superseded),
        against_base=against_base(reports, introduced),
        nights=read_nights(registry, workspace),
        lineage=tuple(
            LineageRow(s.version, s.parent, s.kind, s.stack.adapters, s.time.isoformat(timespec="seconds"), s.note)
            for s in snapshots
        ),
        peak_memory_bytes=peak_memory_bytes,
        sources=dict(sources or {}),
        production=registry.head().version,
    )


def _standing(registry: Registry, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """The base and the increments that production stands on."""
    stack = registry.head().stack.adapters
    grown = [s for s in snapshots[1:] if s.kind == "increment" and s.stack.adapters == stack[: len(s.stack.adapters)]]
    return [snapshots[0], *grown]


def version_reports(registry: Registry, workspace: Path, snapshots: Sequence[Snapshot]) -> dict[str, EvaluationReport]:
    """The report of each version as a candidate, with what was measured on it later, as production."""
    later: dict[str, list[EvaluationReport]] = {}
    for path in sorted((workspace / "runs").glob("*/production.json"), key=lambda path: path.stat().st_mtime_ns):
        report = EvaluationReport.from_json(path.read_text(encoding="utf-8"))
        later.setdefault(report.stack_digest, []).append(report)
    reports = {}
    for snapshot in snapshots:
        own = [EvaluationReport.model_validate(registry.get_json(snapshot.report))] if snapshot.report else []
        found = [*own, *later.get(snapshot.stack.digest, ())]
        if found:
            suites = {name: result for report in found for name, result in report.suites.items()}
            name = f"v{snapshot.version}" if snapshot.version else "base"
            reports[name] = found[0].model_copy(update={"suites": suites})
    return reports


def suite_rows(
    reports: Mapping[str, EvaluationReport], introduced: Mapping[str, int], superseded: Sequence[str]
) -> tuple[SuiteRow, ...]:
    """A row for each suite that some version was measured on; what was not measured has no cell."""
    rows = []
    for suite, night in introduced.items():
        cells = {}
        for version, report in reports.items():
            found = report.suites.get(suite)
            if found is not None and found.score is not None and found.low is not None and found.high is not None:
                cells[version] = Cell(found.score, found.low, found.high, found.n)
        role: Role = "superseded" if suite in superseded else "increment" if night else "general"
        rows.append(SuiteRow(suite, role, night, cells))
    return tuple(rows)


def metrics_of(
    reports: Mapping[str, EvaluationReport], introduced: Mapping[str, int], superseded: Sequence[str]
) -> dict[str, float]:
    """Average, BWT, FWT, forgetting, plasticity and negative flips (of the last version against the one before).

    A metric that cannot be computed, because a cell was not measured or it needs more increments, is left out; so are
    all where the base's own report is gone, which they count from.
    """
    if "base" not in reports:
        return {}
    found = asdict(matrix_of(reports, introduced, superseded).metrics())
    names = list(reports)
    if len(names) >= 2:
        guarded = [suite for suite, night in introduced.items() if suite not in superseded and night < len(names) - 1]
        with contextlib.suppress(SuiteError):  # a suite that only one of the two was measured on
            found["negative_flips"] = flips(reports[names[-2]], reports[names[-1]], guarded).negative_share
    return {name: value for name, value in found.items() if value is not None}


def against_base(reports: Mapping[str, EvaluationReport], introduced: Mapping[str, int]) -> dict[str, Difference]:
    """What all increments together have done to the suites that were there from the start."""
    if len(reports) < 2 or "base" not in reports:
        return {}
    base, last = reports["base"].suites, reports[list(reports)[-1]].suites
    found = {}
    for suite in (name for name, night in introduced.items() if not night and name in base and name in last):
        scored = base[suite].score is not None and last[suite].score is not None
        if scored and base[suite].digest == last[suite].digest:  # other items cannot be compared
            paired = paired_bootstrap(base[suite].outcomes, last[suite].outcomes)
            found[suite] = Difference(paired.difference, paired.low, paired.high, paired.n)
    return found


def machine() -> str:
    """This machine in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _introduced(registry: Registry, snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """Suite -> position of the version that it was new for; 0 for those that no version was made for."""
    introduced: dict[str, int] = {}
    increments = [s for s in snapshots if s.kind == "increment" and s.recipe]
    recipes = [registry.get_json(str(snapshot.recipe))["suites"] for snapshot in increments]
    refused = [registry.get_json(attempt.recipe)["suites"] for attempt in registry.attempts() if attempt.recipe]
    for recipe in (*recipes, *refused):
        for name in (*recipe["old"], *recipe["new"], *recipe["watch"]):
            introduced.setdefault(name, 0)
    for position, recipe in enumerate(recipes, 1):
        for name in recipe["new"]:
            introduced[name] = introduced[name] or position
    return dict(sorted(introduced.items(), key=lambda pair: (pair[1], pair[0])))


def _drops(outcome: Judged) -> dict[str, int]:
    drops: Counter[str] = Counter()
    for row in outcome.dataset.account_table():
        drops.update(row.dropped)
    return dict(drops.most_common())


def _answers(outcome: Judged, suites: Sequence[Suite]) -> tuple[Answer, ...]:
    """Some items that were learned, every kind of loss first: what a reader wants to see is what went wrong."""
    learned, lost, wrong = [], [], []
    for suite in suites:
        before = {item.id: item for item in outcome.production.suites[suite.name].items}
        after = {item.id: item for item in outcome.candidate.suites[suite.name].items}
        for item in suite.items:
            old, new = before[item.id], after[item.id]
            answer = Answer(suite.name, item.messages[-1].content, old.answer, new.answer, old.correct, new.correct)
            if old.correct and not new.correct:
                lost.append(answer)
            elif new.correct and not old.correct:
                learned.append(answer)
            elif not new.correct and old.answer != new.answer:
                wrong.append(answer)
    return tuple(answer for group in (lost, learned, wrong) for answer in _spread(group))


def _spread(answers: Sequence[Answer]) -> list[Answer]:
    """A few of them, from the whole list rather than from its beginning."""
    step = max(1, len(answers) // _ANSWERS)
    return list(answers[::step][:_ANSWERS])


def _night(stored: dict[str, Any]) -> Night:
    return Night(
        **stored
        | {
            "reasons": tuple(stored["reasons"]),
            "checks": tuple(CheckRow(**check) for check in stored["checks"]),
            "refused_lines": tuple(stored["refused_lines"]),
            "answers": tuple(Answer(**answer) for answer in stored["answers"]),
        }
    )
