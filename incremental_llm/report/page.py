"""The HTML page: one file that asks for nothing else, with every text of users and models escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from incremental_llm.artifacts import write_atomic
from incremental_llm.report import summary
from incremental_llm.report.data import Answer, LineageRow, Night, ReportData, SuiteRow
from incremental_llm.report.plots import loss_curves, matrix_map, score_curves


def render(data: ReportData) -> str:
    """The whole page as one string of HTML."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_resource),
    )
    environment.filters.update(
        cell=summary.cell_text,
        share=summary.share,
        signed=summary.signed,
        duration=summary.duration,
        memory=summary.memory,
        why=summary.why,
    )
    return environment.get_template("page.html.j2").render(_values(data))


def write_report(data: ReportData, path: Path) -> None:
    """Render `data` and replace `path` by it atomically."""
    # A reply may hold half of a surrogate pair, which has no UTF-8: it becomes "?", the page is written all the same.
    write_atomic(path, render(data).encode("utf-8", errors="replace"))


def _values(data: ReportData) -> dict[str, Any]:
    """What the template reads, beside `data` itself."""
    compared = [data.metrics, data.baseline_metrics] if data.baseline_suites else [data.metrics]
    return {
        "data": data,
        "style": Markup(_resource("page.css")),
        "headline": summary.headline(data),
        "production": summary.production(data),
        "baseline_name": summary.BASELINE,
        "differences": summary.difference_lines(data),
        "metrics": [
            (metric, [summary.metric_text(metric, metrics) for metrics in compared])
            for metric in summary.metric_rows(*compared)
        ],
        "matrix_map": Markup(matrix_map(data)) if data.suites and data.versions else "",
        "score_curves": Markup(score_curves(data)) if data.suites and data.versions else "",
        "loss_curves": [
            (night, Markup(loss_curves(night, data.nights)))
            for night in data.nights
            if night.anchor_kl or any(night.losses.values())
        ],
        "counts": [
            ("Events", _across(data.nights, lambda night: night.events)),
            ("Examples", _across(data.nights, lambda night: night.examples)),
            ("Left out, by reason", _across(data.nights, lambda night: night.drops)),
        ],
        "stages": _across(data.nights, lambda night: night.stage_seconds),
        "answers": _by_suite,
        "lineage": _lanes(data.lineage),
        "final": _final(data),
    }


def _resource(name: str) -> str:
    return resources.files("incremental_llm.report").joinpath(name).read_text(encoding="utf-8")


def _across(
    nights: Sequence[Night], counts: Callable[[Night], dict[str, Any]]
) -> list[tuple[str, list[int | float | None]]]:
    """One row a name that occurs on any night, one value a night; None where that night has no such name."""
    names = dict.fromkeys(name for night in nights for name in counts(night))
    return [(name, [counts(night).get(name) for night in nights]) for name in names]


def _by_suite(answers: Sequence[Answer]) -> list[tuple[str, list[Answer]]]:
    ordered = sorted(answers, key=lambda answer: answer.suite)
    return [(suite, list(group)) for suite, group in groupby(ordered, key=lambda answer: answer.suite)]


def _lanes(lineage: Sequence[LineageRow]) -> list[tuple[int, LineageRow]]:
    """Each snapshot with its lane: a first child stays in its parent's, every further child opens the next one."""
    lanes: dict[int, int] = {}
    continued: set[int] = set()
    opened = 0
    for row in sorted(lineage, key=lambda row: row.version):
        if row.parent in lanes and row.parent not in continued:
            lanes[row.version] = lanes[row.parent]
            continued.add(row.parent)
        else:
            opened += 1 if lanes else 0
            lanes[row.version] = opened
    return [(lanes[row.version], row) for row in sorted(lineage, key=lambda row: row.version)]


def _final(data: ReportData) -> list[dict[str, Any]]:
    """Our last version beside the baseline's last one, suite by suite; empty without a baseline."""
    if not (data.baseline_suites and data.versions):
        return []
    ours: dict[str, SuiteRow] = {suite.name: suite for suite in data.suites}
    theirs = {suite.name: suite for suite in data.baseline_suites}
    rows = []
    for name in dict.fromkeys((*ours, *theirs)):
        left = ours[name].cells.get(data.versions[-1]) if name in ours else None
        right = theirs[name].cells.get(data.baseline_versions[-1]) if name in theirs else None
        difference = left.score - right.score if left and right else None
        role = (ours.get(name) or theirs[name]).role
        rows.append({"name": name, "role": role, "ours": left, "baseline": right, "difference": difference})
    return rows
