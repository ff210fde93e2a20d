from __future__ import annotations

import json

import pytest
from rich.console import Console

from incremental_llm.report import ReportData, below_the_matrix, matrix_table, plain_table, results_json


def shown(data: ReportData, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(matrix_table(data, width))
    return capture.get()


def test_matrix_table_has_every_cell(data: ReportData) -> None:
    text = shown(data, 100)
    assert "0.90 [0.70, 1.00]" in text
    assert "old facts (superseded)" in text
    assert text.count("not measured") == 2


def test_a_narrow_terminal_stacks_the_interval_under_the_score(data: ReportData) -> None:
    text = shown(data, 60)
    assert "[0.70, 1.00]" in text and "0.90 [0.70, 1.00]" not in text and "…" not in text


def test_plain_table_aligns_the_matrix_and_tells_the_rest(data: ReportData) -> None:
    text = plain_table(data)
    lines = text.splitlines()
    assert "alpha                   0.10 [0.00, 0.30]  0.90 [0.70, 1.00]" in lines
    assert "omega                   0.50 [0.40, 0.60]       not measured" in lines
    assert any(line.startswith("FWT") and line.endswith("not measured") for line in lines)
    assert any(line.startswith("Night 2") and "rejected" in line and "12,345 tokens" in line for line in lines)
    assert "In production: v1. Peak memory: not measured." in text
    assert "fine-tuning" not in text


def test_plain_table_shows_the_baseline_beside_it(with_baseline: ReportData) -> None:
    text = plain_table(with_baseline)
    assert "plain sequential fine-tuning" in text and "v2" in text
    assert any(line.split() == ["Average", "0.900", "0.400"] for line in text.splitlines())


def test_results_json_has_the_published_form(data: ReportData) -> None:
    assert results_json(data) == {
        "against_base": {},
        "scores": {
            "alpha": {
                "base": {"score": 0.1, "low": 0.0, "high": 0.3, "n": 10},
                "v1": {"score": 0.9, "low": 0.7, "high": 1.0, "n": 10},
            },
            "omega": {"base": {"score": 0.5, "low": 0.4, "high": 0.6, "n": 200}, "v1": None},
            "old facts": {"base": None, "v1": {"score": 0.25, "low": 0.2, "high": 0.3, "n": 40}},
        },
        "metrics": {"average": 0.9, "bwt": -0.0625, "fwt": None, "forgetting": None, "negative_flips": 0.02},
        "nights": [
            {"version": 1, "decision": "promoted", "seconds": 125.0, "tokens": 12345},
            {"version": None, "decision": "rejected", "seconds": 125.0, "tokens": 12345},
        ],
        "peak_memory_bytes": None,
        "seed": 3,
    }


def test_results_json_carries_the_baseline_when_there_is_one(with_baseline: ReportData) -> None:
    results = json.loads(json.dumps(results_json(with_baseline), allow_nan=False))
    assert list(results["baseline"]["scores"]["alpha"]) == ["base", "v1", "v2"]
    assert results["baseline"]["metrics"]["average"] == pytest.approx(0.4)


def test_a_terminal_gets_all_that_plain_lines_have(with_baseline: ReportData) -> None:
    below = below_the_matrix(with_baseline)
    assert plain_table(with_baseline).endswith(f"\n\n{below}")
    for told in ("plain sequential fine-tuning", "BWT", "decision", "tokens", "Peak memory"):
        assert told in below
