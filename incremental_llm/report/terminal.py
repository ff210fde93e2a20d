"""The same figures for a terminal and for machines."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from incremental_llm.report.data import Cell, ReportData, SuiteRow
from incremental_llm.report.summary import (
    BASELINE,
    cell_text,
    difference_lines,
    duration,
    headline,
    memory,
    metric_rows,
    metric_text,
    production,
    why,
)

if TYPE_CHECKING:
    from rich.table import Table

_PUBLISHED = ("average", "bwt", "fwt", "forgetting", "negative_flips")


def matrix_table(data: ReportData, width: int | None = None) -> Table:
    """Suites down, versions across, "score [low, high]" in each cell; dim before a suite's own night.

    Where `width` columns (those of the terminal by default) are too few for a line a suite, the interval goes below.
    """
    from rich.table import Table
    from rich.text import Text

    names = max((len(suite_label(suite)) for suite in data.suites), default=5)
    room = shutil.get_terminal_size((100, 24)).columns if width is None else width
    stacked = names + 4 + 20 * len(data.versions) > room
    table = Table(title=Text(data.title), caption=Text("score [95 % interval]; dim: before the suite's own night"))
    table.add_column("suite", overflow="fold")
    for version in data.versions:
        table.add_column(Text(version), justify="right", no_wrap=True)
    for suite in data.suites:
        texts = [cell_text(suite.cells.get(version)) for version in data.versions]
        cells = [
            Text(text.replace(" ", "\n", 1) if stacked else text, style="dim" if column < suite.introduced else "")
            for column, text in enumerate(texts)
        ]
        table.add_row(Text(suite_label(suite), style="italic" if suite.role == "superseded" else ""), *cells)
    return table


def plain_table(data: ReportData) -> str:
    """The matrix, metrics, decisions and costs as plain lines, without colour or box drawing."""
    return f"{data.title}\n\n{_aligned(_matrix_lines(data.suites, data.versions))}\n\n{below_the_matrix(data)}"


def below_the_matrix(data: ReportData) -> str:
    """What `matrix_table` does not show: the baseline, metrics, decisions and costs, as plain lines."""
    blocks = []
    if data.baseline_suites:
        blocks.append(f"{BASELINE}:\n{_aligned(_matrix_lines(data.baseline_suites, data.baseline_versions))}")
    blocks.append(_aligned(_metric_lines(data), right_from=1))
    if data.against_base:
        blocks.append("\n".join(difference_lines(data)))
    if data.nights:
        blocks.append(_aligned(_night_lines(data), right_from=None))
    blocks.append(
        f"{headline(data)} In production: {production(data)}. Peak memory: {memory(data.peak_memory_bytes)}. "
        f"Base {data.base}, seed {data.seed}."
    )
    return "\n\n".join(blocks) + "\n"


def results_json(data: ReportData) -> dict[str, Any]:
    """The figures under stable names; scores and metrics are fractions of 1, null is "not measured".

    {"scores": {suite: {version: {"score", "low", "high", "n"}}}, "metrics": {...}, "against_base": {suite:
    {"difference", "low", "high", "n"}}, "nights": [{"version", "decision",
    "seconds", "tokens"}], "peak_memory_bytes", "seed"}, and "baseline": {"scores", "metrics"} where there is one.
    """
    results: dict[str, Any] = {
        "scores": _scores(data.suites, data.versions),
        "metrics": _published(data.metrics),
        "against_base": {suite: asdict(found) for suite, found in data.against_base.items()},
        "nights": [
            {"version": night.version, "decision": night.decision, "seconds": night.seconds, "tokens": night.tokens}
            for night in data.nights
        ],
        "peak_memory_bytes": data.peak_memory_bytes,
        "seed": data.seed,
    }
    if data.baseline_suites:
        results["baseline"] = {
            "scores": _scores(data.baseline_suites, data.baseline_versions),
            "metrics": _published(data.baseline_metrics),
        }
    return results


def suite_label(suite: SuiteRow) -> str:
    """The suite's name, with a mark where its facts were superseded."""
    return f"{suite.name} (superseded)" if suite.role == "superseded" else suite.name


def _scores(suites: Sequence[SuiteRow], versions: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {suite.name: {version: _cell(suite.cells.get(version)) for version in versions} for suite in suites}


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    return None if cell is None else {"score": cell.score, "low": cell.low, "high": cell.high, "n": cell.n}


def _published(metrics: dict[str, float]) -> dict[str, float | None]:
    return {key: metrics.get(key) for key in _PUBLISHED}


def _matrix_lines(suites: Sequence[SuiteRow], versions: Sequence[str]) -> list[list[str]]:
    rows = [[suite_label(suite), *(cell_text(suite.cells.get(version)) for version in versions)] for suite in suites]
    return [["suite", *versions], *rows]


def _metric_lines(data: ReportData) -> list[list[str]]:
    compared = [data.metrics, data.baseline_metrics] if data.baseline_suites else [data.metrics]
    head = ["metric", "this run", "baseline"][: len(compared) + 1]
    return [head] + [
        [metric.label, *(metric_text(metric, metrics) for metrics in compared)] for metric in metric_rows(*compared)
    ]


def _night_lines(data: ReportData) -> list[list[str]]:
    rows = [
        [
            night.label,
            night.decision,
            "-" if night.version is None else f"v{night.version}",
            duration(night.seconds),
            f"{night.tokens:,} tokens",
            why(night),
        ]
        for night in data.nights
    ]
    return [["night", "decision", "version", "time", "trained", "why"], *rows]


def _aligned(rows: list[list[str]], right_from: int | None = 1) -> str:
    """Columns padded to one width; those from `right_from` on are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right_from is not None and column >= right_from else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
