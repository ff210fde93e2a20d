"""What the gate will ask for anyway is asked before a night is spent on it."""

from __future__ import annotations

import contextlib

import pytest

from incremental_llm.errors import InputError, NothingToTrainError, SuiteError
from incremental_llm.evaluation import EvaluationReport, ItemResult, SuiteResult
from incremental_llm.gate import GatePolicy
from incremental_llm.gate.feasible import check_gain, check_headroom, check_measured, check_suites, items_needed

POLICY = GatePolicy(min_items=30, margin=0.1, margins={"strict": 0.02}, min_corrections=10)


def test_suites_that_are_large_enough_pass() -> None:
    check_suites({"new": 30, "old": 30, "strict": items_needed("strict", POLICY)}, POLICY, ["new"], ["old", "strict"])
    assert items_needed("old", POLICY) == 30
    assert items_needed("strict", POLICY) == 149


@pytest.mark.parametrize(
    ("sizes", "new", "old", "said"),
    [
        ({"a": 40}, ["a"], [], "suites.old: expected a suite that must not get worse"),
        ({"a": 29, "b": 40}, ["a"], ["b"], "a has 29 items, 30 are needed"),
        ({"strict": 148}, [], ["strict"], "strict has 148 items, 149 are needed"),
    ],
)
def test_suites_with_which_no_candidate_could_pass_are_refused(
    sizes: dict[str, int], new: list[str], old: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check_suites(sizes, POLICY, new, old)


def test_too_few_corrections_wait_for_more() -> None:
    check_gain(10, POLICY, [])
    check_gain(0, POLICY, ["new"])
    with pytest.raises(NothingToTrainError, match=r"9 new corrections that can be tested.*the feedback waits for more"):
        check_gain(9, POLICY, [])


@pytest.mark.parametrize(("right", "room"), [(0, True), (30, True), (38, False), (40, False)])
def test_where_production_is_right_already_nothing_is_trained(right: int, room: bool) -> None:
    items = [ItemResult(id=f"i{n}", answer="", correct=n < right) for n in range(40)]
    suites = {"s": SuiteResult.of("s", 1, "d", items)}
    production = EvaluationReport(stack_digest="x", suites=suites, seconds=0, tokens=0)
    with contextlib.nullcontext() if room else pytest.raises(NothingToTrainError, match=f"v3 is right on {right} of"):
        check_headroom(production, POLICY, ["s"], "production v3")
    check_headroom(production, POLICY, [], "production v3")


def test_a_production_without_a_score_is_refused() -> None:
    def report(correct: bool | None) -> EvaluationReport:
        items = [
            ItemResult(id="i1", answer="", correct=True),
            ItemResult(id="i2", answer="", correct=correct, note="NaN"),
        ]
        suites = {"s": SuiteResult.of("s", 1, "d", items)}
        return EvaluationReport(stack_digest="x", suites=suites, seconds=0, tokens=0)

    check_measured(report(False), "production v3")
    with pytest.raises(SuiteError, match=r"v3 cannot be measured on s: 1 of 2 items have no outcome \(NaN\)"):
        check_measured(report(None), "production v3")
