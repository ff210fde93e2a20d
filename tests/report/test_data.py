from __future__ import annotations

import dataclasses
import math

import pytest

from incremental_llm.errors import InputError
from incremental_llm.report import Cell, ReportData, SuiteRow
from incremental_llm.report.data import Answer, CheckRow


def test_nan_is_refused_with_the_path_to_it(data: ReportData) -> None:
    with pytest.raises(InputError, match=r"metrics\['bwt'\] is nan.*Leave out what was not measured"):
        dataclasses.replace(data, metrics={"bwt": math.nan})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"losses": {"sft": [1.0, math.nan]}}, r"nights\[0\].losses\['sft'\]\[1\] is nan"),
        ({"anchor_kl": [math.inf]}, r"nights\[0\].anchor_kl\[0\] is inf"),
        ({"checks": (CheckRow("c", True, math.nan, 1, 1, 1, 1, 1, 1, ""),)}, r"nights\[0\].checks\[0\].before is nan"),
    ],
)
def test_non_finite_numbers_inside_a_night_are_refused(data: ReportData, changes: dict[str, object], path: str) -> None:
    wrong = dataclasses.replace(data.nights[0], **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=path):
        dataclasses.replace(data, nights=(wrong,))


def test_many_non_finite_numbers_are_counted(data: ReportData) -> None:
    wrong = dataclasses.replace(data.nights[0], anchor_kl=[math.nan] * 8)
    with pytest.raises(InputError, match=r"and 3 more"):
        dataclasses.replace(data, nights=(wrong,))


@pytest.mark.parametrize(
    "cell", [Cell(1.2, 0.1, 0.2, 5), Cell(0.5, 0.6, 0.4, 5), Cell(0.5, -0.1, 1, 5), Cell(0, 0, 1, 0)]
)
def test_impossible_cells_are_refused(data: ReportData, cell: Cell) -> None:
    with pytest.raises(InputError, match=r"'alpha' at v1: expected a score"):
        dataclasses.replace(data, suites=(SuiteRow("alpha", "general", 0, {"v1": cell}),))


def test_a_cell_of_an_unknown_version_is_refused_not_dropped(data: ReportData) -> None:
    with pytest.raises(InputError, match=r"has a cell for 'v7', expected one of base, v1"):
        dataclasses.replace(data, suites=(SuiteRow("alpha", "general", 0, {"v7": Cell(0.5, 0.4, 0.6, 5)}),))


def test_names_occur_once(data: ReportData) -> None:
    with pytest.raises(InputError, match=r"versions: v1 occurs more than once"):
        dataclasses.replace(data, versions=("base", "v1", "v1"))
    with pytest.raises(InputError, match=r"suites: alpha occurs more than once"):
        dataclasses.replace(data, suites=(data.suites[0], data.suites[0]))


def test_baseline_may_have_later_versions(with_baseline: ReportData) -> None:
    assert with_baseline.baseline_versions == ("base", "v1", "v2")


def test_records_are_frozen(data: ReportData) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.title = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Answer("s", "q", "b", "a", True, True).after = "x"  # type: ignore[misc]
