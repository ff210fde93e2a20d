"""A made-up run of two nights, small enough to check by eye: one promoted, one rejected, one cell not measured."""

from __future__ import annotations

import dataclasses

import pytest

from incremental_llm.report import Answer, Cell, CheckRow, LineageRow, Night, ReportData, SuiteRow

HOSTILE = '<script>alert("x")</script><img src="http://example.invalid/x.png" onerror=alert(1)>'


def night(label: str, version: int | None, decision: str, **changes: object) -> Night:
    values: dict[str, object] = {
        "reasons": ("alpha rose from 0.10 to 0.90",),
        "checks": (
            CheckRow("new: alpha", True, 0.1, 0.9, 0.8, 0.7, 0.9, 10, 0.1, "better by 0.8"),
            CheckRow("old: omega", False, 0.5, None, None, None, None, None, 0.05, "the candidate has no result"),
        ),
        "seconds": 125.0,
        "tokens": 12345,
        "stage_seconds": {"training": 100.0, "gate": 0.01},
        "losses": {"sft": [2.0, 1.0, 0.5], "dpo": [0.69]},
        "anchor_kl": [0.0, 0.01, 0.02],
        "events": {"interaction": 20},
        "examples": {"sft": 5},
        "drops": {"duplicate": 2},
        "mixture": "sft 5 new + 2 replay",
        "refused_lines": (f"log.jsonl:3: expected an object, found {HOSTILE}",),
        "answers": (
            Answer("alpha", "Who?", HOSTILE, "Nobody.", False, True),
            Answer("alpha", "Why?", "", "x", None, None),
        ),
    }
    return Night(label, version, decision, **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def data() -> ReportData:
    alpha = SuiteRow("alpha", "increment", 1, {"base": Cell(0.1, 0.0, 0.3, 10), "v1": Cell(0.9, 0.7, 1.0, 10)})
    omega = SuiteRow("omega", "general", 0, {"base": Cell(0.5, 0.4, 0.6, 200)})
    old = SuiteRow("old facts", "superseded", 1, {"v1": Cell(0.25, 0.2, 0.3, 40)})
    return ReportData(
        title="Two nights",
        base="a base",
        seed=3,
        date="2026-11-01",
        machine="a machine",
        versions=("base", "v1"),
        suites=(alpha, omega, old),
        metrics={"average": 0.9, "bwt": -0.0625, "negative_flips": 0.02},
        nights=(
            night("Night 1", 1, "promoted"),
            night("Night 2", None, "rejected", reasons=("alpha fell", "omega too")),
        ),
        lineage=(LineageRow(0, None, "init", (), "20:00", ""), LineageRow(1, 0, "increment", ("a1",), "02:00", "")),
        peak_memory_bytes=None,
        sources={"this page": "make demo SEED=3"},
    )


@pytest.fixture(scope="session")
def with_baseline(data: ReportData) -> ReportData:
    plain = SuiteRow("alpha", "increment", 1, {name: Cell(0.4, 0.3, 0.5, 10) for name in ("base", "v1", "v2")})
    return dataclasses.replace(data, baseline_suites=(plain,), baseline_metrics={"average": 0.4})


@pytest.fixture(scope="session")
def empty(data: ReportData) -> ReportData:
    """The same run before its first night: no suites, so nothing to draw."""
    return dataclasses.replace(data, suites=(), versions=(), nights=(), lineage=(), metrics={}, sources={})
