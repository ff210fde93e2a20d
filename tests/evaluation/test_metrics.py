"""The formulas, with the numbers of their docstrings; a missing cell is an error."""

from __future__ import annotations

import dataclasses

import pytest

from incremental_llm.errors import SuiteError
from incremental_llm.evaluation import EvaluationReport, ItemResult, Matrix, Metrics, SuiteResult, flips, matrix_of

EXAMPLE = Matrix(
    ("a", "b"),
    ("base", "v1", "v2"),
    {("a", "base"): 0.1, ("a", "v1"): 0.9, ("a", "v2"): 0.7, ("b", "base"): 0.2, ("b", "v1"): 0.3, ("b", "v2"): 0.8},
    {"a": 1, "b": 2},
)


def report(stack: str, **suites: str) -> EvaluationReport:
    """One suite a keyword, its items as letters: r right, w wrong, u unscored."""
    meaning = {"r": True, "w": False, "u": None}
    results = {
        name: SuiteResult.of(
            name, 1, "d", [ItemResult(id=f"i{n}", answer="", correct=meaning[o]) for n, o in enumerate(outcomes)]
        )
        for name, outcomes in suites.items()
    }
    return EvaluationReport(stack_digest=stack, suites=results, seconds=0, tokens=0)


def test_the_docstrings_numbers() -> None:
    found = EXAMPLE.metrics()
    assert found.average == pytest.approx(0.75)
    assert found.bwt == pytest.approx(-0.2)
    assert found.fwt == pytest.approx(0.1)
    assert found.forgetting == pytest.approx(0.2)
    assert found.plasticity == pytest.approx(0.85)


def test_forgetting_looks_for_the_best_earlier_score() -> None:
    scores = {("a", v): s for v, s in zip(("base", "v1", "v2", "v3"), (0.0, 0.6, 0.9, 0.5), strict=True)}
    scores |= {("b", v): s for v, s in zip(("base", "v1", "v2", "v3"), (0.0, 0.0, 0.8, 0.8), strict=True)}
    matrix = Matrix(("a", "b"), ("base", "v1", "v2", "v3"), scores, {"a": 1, "b": 2})
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.5) + 0.0) / 2)
    assert matrix.bwt() == pytest.approx((-0.1 + 0.0) / 2)


def test_general_and_superseded_suites_enter_no_metric() -> None:
    cells = {("g", v): 0.5 for v in EXAMPLE.versions} | {("old", v): 0.0 for v in EXAMPLE.versions}
    matrix = Matrix(
        ("a", "b", "g", "old"),
        EXAMPLE.versions,
        {**EXAMPLE.scores, **cells},
        {"a": 1, "b": 2, "g": 0, "old": 1},
        frozenset({"old"}),
    )
    assert matrix.metrics() == EXAMPLE.metrics()


def test_undefined_is_none_and_never_zero() -> None:
    base_only = Matrix(("g",), ("base",), {("g", "base"): 0.5}, {"g": 0})
    assert base_only.metrics() == Metrics(None, None, None, None, None)
    one = Matrix(("a",), ("base", "v1"), {("a", "base"): 0.1, ("a", "v1"): 0.9}, {"a": 1})
    assert (one.bwt(), one.fwt(), one.forgetting(), one.plasticity()) == (None, None, None, 0.9)


@pytest.mark.parametrize("value", [None, float("nan"), "absent"])
@pytest.mark.parametrize("cell", sorted(EXAMPLE.scores))
def test_a_metric_that_needs_a_missing_cell_is_none(cell: tuple[str, str], value: float | str | None) -> None:
    scores = {key: score for key, score in EXAMPLE.scores.items() if key != cell}
    if not isinstance(value, str):
        scores[cell] = value
    matrix = dataclasses.replace(EXAMPLE, scores=scores)
    needed_by = {
        ("a", "base"): set(),  # no formula reads the base score of a suite of the first increment
        ("a", "v1"): {"bwt", "forgetting", "plasticity"},
        ("a", "v2"): {"average", "bwt", "forgetting"},
        ("b", "base"): {"fwt"},
        ("b", "v1"): {"fwt"},
        ("b", "v2"): {"average", "plasticity"},
    }[cell]
    found, whole = dataclasses.asdict(matrix.metrics()), dataclasses.asdict(EXAMPLE.metrics())
    assert found == {name: None if name in needed_by else number for name, number in whole.items()}
    with pytest.raises(SuiteError, match=f"expected a score of suite '{cell[0]}' at {cell[1]}, found none"):
        matrix.cell(cell[0], EXAMPLE.versions.index(cell[1]))


def test_a_suite_written_with_its_increment_has_all_metrics_but_forward_transfer() -> None:
    scores = {("a", "v2"): 0.9, ("a", "v3"): 0.6, ("b", "v3"): 0.8}
    matrix = Matrix(("a", "b"), ("base", "v1", "v2", "v3"), scores, {"a": 2, "b": 3})
    found = matrix.metrics()
    assert (found.average, found.bwt, found.forgetting) == pytest.approx((0.7, -0.3, 0.3))
    assert (found.fwt, found.plasticity) == (None, pytest.approx(0.85))


def test_a_suite_without_its_increment_is_an_error() -> None:
    with pytest.raises(SuiteError, match="expected suite 'b' to be introduced between 0"):
        dataclasses.replace(EXAMPLE, introduced={"a": 1})
    with pytest.raises(SuiteError, match="introduced"):
        dataclasses.replace(EXAMPLE, introduced={"a": 1, "b": 3})
    with pytest.raises(SuiteError, match="at least the base"):
        Matrix((), (), {}, {})


def test_flips_are_the_docstrings_numbers() -> None:
    found = flips(report("x", s="rrww"), report("y", s="rwrw"), ["s"])
    assert (found.negative, found.positive, found.n) == (("s/i1",), ("s/i2",), 4)
    assert (found.negative_share, found.stability) == (0.25, 0.5)


def test_flips_refuse_what_was_not_measured() -> None:
    whole = report("x", s="rr")
    for other, message in (
        (report("y", s="ru"), "1 of 2 without an outcome"),
        (report("y", t="rr"), "expected suite 's' in the report"),
        (report("y", s="r"), "not the same in both"),
    ):
        with pytest.raises(SuiteError, match=message):
            flips(whole, other, ["s"])
    with pytest.raises(SuiteError, match="at least one suite"):
        flips(whole, whole, [])


def test_matrix_of_reports() -> None:
    reports = {"base": report("0", a="wwww", g="rrww"), "v1": report("1", a="rrrw", g="rrrw")}
    matrix = matrix_of(reports, {"a": 1, "g": 0})
    assert (matrix.average(), matrix.cell("g", 0), matrix.last) == (0.75, 0.5, 1)


def test_other_items_partial_and_missing_results_are_no_cells() -> None:
    newer = SuiteResult.of("a", 2, "e", [ItemResult(id="i0", answer="", correct=True)])
    other = EvaluationReport(stack_digest="1", suites={"a": newer}, seconds=0, tokens=0)
    matrix = matrix_of({"base": report("0", a="w", p="wu"), "v1": other}, {"a": 1, "p": 0, "nowhere": 0})
    assert matrix.scores == {("a", "v1"): 1.0}
    assert matrix.metrics() == Metrics(1.0, None, None, None, 1.0)
