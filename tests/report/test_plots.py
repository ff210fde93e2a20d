from __future__ import annotations

import dataclasses
import re
import time
import xml.etree.ElementTree as ElementTree

import pytest

from incremental_llm.report import Cell, ReportData, SuiteRow
from incremental_llm.report.plots import loss_curves, matrix_map, score_curves


def texts(svg: str) -> list[str]:
    tree = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    return [node.text or "" for node in tree.iter("text")]


def test_every_cell_is_written_and_a_missing_one_says_so(data: ReportData) -> None:
    written = texts(matrix_map(data))
    assert {"alpha", "omega", "base", "v1", "0.90", "[0.70, 1.00]", "0.25"} <= set(written)
    assert written.count("not measured") == 2
    assert "0.00" not in written


def test_superseded_rows_are_grey_and_early_cells_pale(data: ReportData) -> None:
    svg = matrix_map(data)
    assert "var(--grey-high) 25%" in svg and "var(--heat-high) 90%" in svg
    early = re.search(r"var\(--heat-high\) 10%[^\"]*", svg)
    assert early and "opacity: 0.45" in early[0]


def test_colours_come_from_the_page(with_baseline: ReportData) -> None:
    for svg in (
        matrix_map(with_baseline),
        score_curves(with_baseline),
        loss_curves(with_baseline.nights[0], with_baseline.nights),
    ):
        assert not re.search(r"#0[a-d]0", svg), "a placeholder colour was left"
        assert "<style" not in svg and "font-family" not in svg and "<?xml" not in svg and 'id="figure' not in svg
        assert "var(--ink)" in svg


def test_names_are_escaped_and_dollars_are_not_formulas(data: ReportData) -> None:
    name = "<b>&$x_1$"
    renamed = dataclasses.replace(data, suites=(SuiteRow(name, "general", 0, {"v1": Cell(0.5, 0.4, 0.6, 9)}),))
    assert name in texts(matrix_map(renamed))
    assert name in texts(score_curves(renamed))


def test_other_scripts_need_no_font_of_ours(data: ReportData) -> None:
    renamed = dataclasses.replace(data, suites=(SuiteRow("返品", "general", 0, {"v1": Cell(0.5, 0.4, 0.6, 9)}),))
    assert "返品" in texts(matrix_map(renamed))


def test_an_objective_that_did_not_run_says_so(data: ReportData) -> None:
    skipped = dataclasses.replace(data.nights[1], losses={"sft": [1.0]}, anchor_kl=[])
    written = texts(loss_curves(skipped, (data.nights[0], skipped)))
    assert {"sft loss", "dpo loss", "anchor KL"} <= set(written) and written.count("not run") == 2


def test_drawing_is_deterministic(data: ReportData) -> None:
    assert matrix_map(data) == matrix_map(data)


@pytest.mark.parametrize("count", [1, 5])
def test_any_number_of_suites_fits_the_panels(data: ReportData, count: int) -> None:
    suites = tuple(SuiteRow(f"s{place}", "general", 0, {"v1": Cell(0.5, 0.4, 0.6, 9)}) for place in range(count))
    assert {f"s{place}" for place in range(count)} <= set(texts(score_curves(dataclasses.replace(data, suites=suites))))


def test_all_pictures_of_a_run_take_less_than_three_seconds(with_baseline: ReportData) -> None:
    matrix_map(with_baseline)  # imports matplotlib, which may build its font cache once a machine
    started = time.perf_counter()
    matrix_map(with_baseline)
    score_curves(with_baseline)
    for night in with_baseline.nights:
        loss_curves(night, with_baseline.nights)
    assert time.perf_counter() - started < 3
