from __future__ import annotations

import dataclasses

import pytest

from incremental_llm.report import Cell, LineageRow, ReportData, summary


def test_production_is_the_newest_promoted_or_committed_version(data: ReportData) -> None:
    assert summary.production(data) == "v1"
    undone = (*data.lineage, LineageRow(2, 1, "rollback", (), "08:00", "back to v0"))
    assert summary.production(dataclasses.replace(data, lineage=undone)) == "v2"
    assert summary.production(dataclasses.replace(data, production=0)) == "base"
    assert summary.production(dataclasses.replace(data, nights=data.nights[1:], lineage=())) == "base"


def test_headline_counts_decisions(data: ReportData) -> None:
    assert summary.headline(data) == "2 nights: 1 promoted, 1 rejected. Night 2 was rejected and changed nothing."
    assert summary.headline(dataclasses.replace(data, nights=data.nights[:1])) == "1 night: 1 promoted."
    assert summary.headline(dataclasses.replace(data, nights=())) == "No night has run yet."


def test_why_is_one_sentence(data: ReportData) -> None:
    first, second = data.nights
    assert summary.why(first) == "alpha rose from 0.10 to 0.90"
    assert summary.why(second) == "alpha fell (and 1 more, below)"
    listed = dataclasses.replace(second, reasons=("alpha fell. Lost: a/1, a/2 and 7 more.",))
    assert summary.why(listed) == "alpha fell."
    without = dataclasses.replace(first, reasons=())
    assert summary.why(without) == "1 of 2 checks failed, first old: omega: the candidate has no result"
    assert summary.why(dataclasses.replace(without, checks=first.checks[:1])) == "all 1 checks passed"
    assert summary.why(dataclasses.replace(without, checks=())) == "the gate checked nothing"


def test_the_five_published_metrics_are_always_listed_and_others_when_measured() -> None:
    assert [metric.key for metric in summary.metric_rows({})] == [
        "average",
        "bwt",
        "fwt",
        "forgetting",
        "negative_flips",
    ]
    keys = [metric.key for metric in summary.metric_rows({"plasticity": 0.1}, {"own": 0.2})]
    assert "plasticity" in keys and keys[-1] == "own"


def test_cells_and_signs() -> None:
    assert summary.cell_text(Cell(0.834, 0.71, 0.912, 40)) == "0.83 [0.71, 0.91]"
    assert summary.cell_text(None) == summary.share(None) == summary.signed(None) == "not measured"
    assert [summary.signed(value) for value in (0.1, -0.1, 0.0, -0.001)] == ["+0.10", "\u22120.10", "0.00", "0.00"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.01, "< 0.1 s"),
        (0.42, "0.4 s"),
        (38.2, "38 s"),
        (59.9, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert summary.duration(seconds) == text


def test_memory() -> None:
    assert [summary.memory(size) for size in (None, 512_000_000, 3_412_000_000)] == [
        "not measured",
        "512 MB",
        "3.41 GB",
    ]
