"""A result is what its items say, before and after a trip through a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.errors import IntegrityError
from incremental_llm.evaluation import EvaluationReport, ItemResult, SuiteResult, wilson


def result(outcomes: list[bool | None], suite: str = "s") -> SuiteResult:
    items = [ItemResult(id=f"i{n}", answer="\u2028 x", correct=outcome) for n, outcome in enumerate(outcomes)]
    return SuiteResult.of(suite, 1, "d" * 64, items)


def report(*results: SuiteResult) -> EvaluationReport:
    return EvaluationReport(stack_digest="s" * 64, suites={r.suite: r for r in results}, seconds=1.5, tokens=7)


def test_figures() -> None:
    found = result([True, True, False, None])
    assert (found.score, found.n, found.unscored) == (pytest.approx(2 / 3), 3, 1)
    assert (found.low, found.high) == wilson(2, 3)
    assert found.outcomes == {"i0": 1.0, "i1": 1.0, "i2": 0.0}


def test_nothing_scored_has_no_score() -> None:
    for found in (result([]), result([None, None])):
        assert (found.score, found.low, found.high, found.n) == (None, None, None, 0)


@given(st.lists(st.sampled_from([True, False, None]), max_size=12))
def test_json_round_trip(outcomes: list[bool | None]) -> None:
    whole = report(result(outcomes, "a"), result(outcomes[::-1], "b"))
    again = EvaluationReport.from_json(whole.to_json())
    assert again == whole and again.digest == whole.digest


@pytest.mark.parametrize(("key", "value"), [("score", 0.9), ("low", None), ("n", 3), ("unscored", 0), ("score", None)])
def test_an_edited_figure_is_refused(key: str, value: float | None) -> None:
    text = json.loads(report(result([True, False, None])).to_json())
    text["suites"]["s"][key] = value
    with pytest.raises(IntegrityError, match=rf"suites.s: .*{key} is {value}"):
        EvaluationReport.from_json(json.dumps(text))


def test_an_item_counted_twice_is_refused() -> None:
    items = [ItemResult(id="a", answer="", correct=True)] * 2
    with pytest.raises(ValidationError, match="item 'a' is there twice"):
        SuiteResult.of("s", 1, "d", items)


def test_a_result_under_another_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="the result under 'x' is of suite 's'"):
        EvaluationReport(stack_digest="s", suites={"x": result([True])}, seconds=0, tokens=0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"stack_digest": 1}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="expected an evaluation report"):
        EvaluationReport.from_json(text)
