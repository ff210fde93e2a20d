"""The page a person reads in the morning: what each night decided, why, and what it cost.

    from incremental_llm.report import Cell, ReportData, SuiteRow, plain_table, write_report

    suite = SuiteRow("general", "general", 0, {"base": Cell(0.50, 0.43, 0.57, 200)})
    data = ReportData(title="One night", base="smollm2-135m", seed=0, date="2026-11-01", machine="2 cores",
                      versions=("base",), suites=(suite,), metrics={}, nights=(), lineage=(), peak_memory_bytes=None)
    write_report(data, Path("report.html"))     # one file, no script, no request
    print(plain_table(data))                    # the same figures for a terminal

Verbs: `render` and `write_report` (HTML), `matrix_table` with `below_the_matrix`, or `plain_table` (terminal),
`results_json` (machines).

The one design fact: a report is a pure function of `ReportData`, plain values that the caller fills. It opens no
registry and measures nothing; a figure that is absent is shown as "not measured", never as 0, and NaN is refused.
"""

from __future__ import annotations

from incremental_llm.report.data import (
    Answer,
    Cell,
    CheckRow,
    LineageRow,
    Night,
    ReportData,
    SuiteRow,
)
from incremental_llm.report.page import render, write_report
from incremental_llm.report.terminal import below_the_matrix, matrix_table, plain_table, results_json

__all__ = [
    "Answer",
    "Cell",
    "CheckRow",
    "LineageRow",
    "Night",
    "ReportData",
    "SuiteRow",
    "below_the_matrix",
    "matrix_table",
    "plain_table",
    "render",
    "results_json",
    "write_report",
]
