"""The gate fails closed, says why, and a worse candidate never does better."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.errors import ConfigError, InputError, IntegrityError
from incremental_llm.evaluation import EvaluationReport, ItemResult, SuiteResult
from incremental_llm.gate import COLUMNS, Decision, GatePolicy, decide

Outcomes = dict[str, list[bool | None]]
POLICY = GatePolicy(resamples=1000)
BEFORE: Outcomes = {
    "new": [False] * 36 + [True] * 4,
    "general": [True, False] * 30,
    "old": [True] * 38 + [False] * 2,
    "kept": [True] * 20,
    "own": [False] * 12,
}
AFTER: Outcomes = {
    "new": [False] * 4 + [True] * 36,
    "general": [True, False] * 29 + [True, True],
    "old": [True] * 38 + [False] * 2,
    "kept": [True] * 20,
    "own": [True] * 12,
}
ROLES: dict[str, Any] = {
    "new_suites": ["new"],
    "old_suites": ["general", "old"],
    "corrections": ["kept"],
    "own_corrections": "own",
}


def result(name: str, outcomes: list[bool | None], version: int = 1, digest: str = "d") -> SuiteResult:
    items = [ItemResult(id=f"i{n:02d}", answer="", correct=outcome) for n, outcome in enumerate(outcomes)]
    return SuiteResult.of(name, version, digest, items)


def report(stack: str, outcomes: Outcomes) -> EvaluationReport:
    suites = {name: result(name, values) for name, values in outcomes.items()}
    return EvaluationReport(stack_digest=stack, suites=suites, seconds=1, tokens=1)


def replaced(whole: EvaluationReport, name: str, by: SuiteResult | None) -> EvaluationReport:
    """The report with one suite exchanged or removed."""
    suites = {key: by if key == name and by else value for key, value in whole.suites.items() if key != name or by}
    return whole.model_copy(update={"suites": suites})


def judge(
    after: Outcomes | None = None,
    before: Outcomes | None = None,
    *,
    candidate: EvaluationReport | None = None,
    production: EvaluationReport | None = None,
    policy: GatePolicy = POLICY,
    **changes: Any,
) -> Decision:
    return decide(
        candidate=candidate or report("cand", after or AFTER),
        production=production or report("prod", before or BEFORE),
        policy=policy,
        **{"candidate_stack": "cand", "production_stack": "prod", **ROLES, **changes},
    )


def reason(decision: Decision) -> str:
    """The reasons of a rejection."""
    assert not decision.passed and decision.failed
    return " ".join(decision.reasons)


def test_a_good_candidate_passes_and_says_why() -> None:
    decision = judge()
    assert decision.passed and decision.failed == ()
    assert (decision.stack_digest, decision.production_digest) == ("cand", "prod")
    assert any(text.startswith("new: 10.0 -> 90.0 (+80.0, interval ") for text in decision.reasons)
    new = next(check for check in decision.checks if check.name == "new")
    assert (new.before, new.after, new.n, new.bound) == (0.1, 0.9, 40, 0.0)
    assert new.low is not None and new.low > 0.6
    own = next(check for check in decision.checks if check.name == "own")
    assert own.passed is None and own.kind == "unguarded"


def test_the_table_shows_every_suite_once() -> None:
    rows = judge().table()
    assert [row[0] for row in rows] == ["new", "own", "general", "old", "kept", "negative flips"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][:5] == ("new", "new", "10.0", "90.0", "+80.0") and rows[0][-1] == "passed"


def test_a_decision_survives_a_file_and_an_edited_one_does_not() -> None:
    rejected = judge({**AFTER, "old": [False] * 40})
    for decision in (judge(), rejected):
        assert Decision.from_json(decision.to_json()) == decision
    with pytest.raises(IntegrityError, match="only passed checks"):
        Decision.from_json(rejected.to_json().replace('"passed": false', '"passed": true', 1))
    with pytest.raises(IntegrityError, match="expected a gate decision"):
        Decision.from_json("{}")


def test_a_regression_names_the_items_that_decided() -> None:
    decision = judge({**AFTER, "old": [False] * 15 + [True] * 23 + [False] * 2})
    assert "old: 95.0 -> 57.5 (-37.5, interval" in reason(decision)
    assert "worse; the lower end has to be at least -10.0 points" in reason(decision)
    assert "i00, i01" in reason(decision) and "and 5 more" in reason(decision)
    assert decision.negative_flips == tuple(f"old/i{n:02d}" for n in range(10))
    check = next(check for check in decision.failed if check.name == "old")
    assert (check.lost_total, len(check.lost)) == (15, 10)


def test_an_unproven_old_suite_tells_what_could_be_seen() -> None:
    after = [False] * 3 + [True] * 37
    text = reason(judge({**AFTER, "old": after}, {**BEFORE, "old": [True] * 40}))
    assert "worse" in text and "40 items show a difference of" in text


def test_no_gain_is_no_pass() -> None:
    assert "new: 10.0 -> 10.0 (+0.0, interval +0.0 to +0.0, 40 items): not shown to be better" in reason(
        judge({**AFTER, "new": BEFORE["new"]})
    )
    one_more = [True, *BEFORE["new"][1:]]
    assert "not shown to be better" in reason(judge({**AFTER, "new": one_more}))


def test_own_corrections_stand_in_for_a_missing_new_suite() -> None:
    without = (
        {key: value for key, value in AFTER.items() if key != "new"},
        {key: value for key, value in BEFORE.items() if key != "new"},
    )
    assert judge(*without, new_suites=[]).passed
    assert "not shown to be better" in reason(judge({**without[0], "own": [False] * 12}, without[1], new_suites=[]))
    few = {**without[0], "own": [True] * 9}, {**without[1], "own": [False] * 9}
    assert "own has 9 items, 10 are needed" in reason(judge(*few, new_suites=[]))
    for side in without:
        del side["own"]
    text = reason(judge(*without, new_suites=[], own_corrections=None))
    assert "a gain was not measured" in text


def test_one_adapter_in_the_place_of_several_has_to_be_better_at_nothing_and_worse_nowhere() -> None:
    roles = {"new_suites": [], "own_corrections": None, "old_suites": ["general", "old", "new"], "gain_needed": False}
    before, after = ({n: v for n, v in side.items() if n != "own"} for side in (BEFORE, BEFORE))
    assert judge(after, before, **roles).passed
    for suite, outcomes in (("new", [False] * 40), ("general", [False] * 60), ("kept", [True] * 15 + [False] * 5)):
        assert not judge(after | {suite: outcomes}, before, **roles).passed
    told = reason(judge(after, before, **roles | {"gain_needed": True}))
    assert "a gain was not measured" in told


def test_no_old_suite_is_no_pass() -> None:
    text = reason(judge(old_suites=[], unguarded_suites=["general", "old"]))
    assert "that nothing was lost was not measured" in text


def test_lost_corrections_are_counted() -> None:
    assert judge({**AFTER, "kept": [False] + [True] * 19}).passed
    text = reason(judge({**AFTER, "kept": [False] * 2 + [True] * 18}))
    assert "2 of 20 corrections accepted earlier were lost (10.0 points), at most 5.0 points may be: i00, i01" in text


def test_superseded_suites_are_reported_and_not_guarded() -> None:
    after = {**AFTER, "old": [False] * 40}
    decision = judge(after, superseded_suites=["old"])
    assert decision.passed
    check = next(check for check in decision.checks if check.name == "old")
    assert check.passed is None and check.after == 0.0


def test_superseded_suites_must_be_measured_all_the_same() -> None:
    text = reason(judge(candidate=replaced(report("cand", AFTER), "old", None), superseded_suites=["old"]))
    assert "old was not measured" in text


def test_too_many_flips_fail_even_where_gains_hide_them() -> None:
    before = {**BEFORE, "old": [True] * 20 + [False] * 20, "general": [True] * 30 + [False] * 30}
    after = {**AFTER, "old": [False] * 10 + [True] * 30, "general": [False] * 10 + [True] * 50}
    text = reason(judge(after, before))
    assert "20 of 100 items of old suites were right before and are wrong now (20.0 points)" in text


def test_a_margin_needs_enough_items() -> None:
    text = reason(judge(policy=GatePolicy(resamples=1000, margins={"old": 0.05})))
    assert "old has 40 items, 59 are needed: too few to be measured. A margin of 5.0 points needs them" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate_stack": "other"}, "the candidate was not measured"),
        ({"production_stack": "other"}, "production was not measured"),
        ({"candidate_stack": "prod", "candidate": report("prod", AFTER)}, "is the production stack prod itself"),
        ({"new_suites": ["new", "typo"]}, "typo was not measured: production's report lacks it"),
        ({"old_suites": ["general"]}, r"given no role \(old\)"),
    ],
)
def test_the_input_must_be_what_was_declared(changes: dict[str, Any], message: str) -> None:
    decision = judge(**changes)
    with pytest.raises(AssertionError):
        assert decision.passed
    assert __import__("re").search(message, reason(decision))


@pytest.mark.parametrize(
    "changes",
    [
        {"old_suites": ["general", "old", "new"]},
        {"unguarded_suites": ["old"]},
        {"superseded_suites": ["new"]},
        {"own_corrections": "kept"},
        {"old_suites": ["general", "old", "old"]},
    ],
)
def test_a_suite_has_one_role(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"one role|each suite once"):
        judge(**changes)


# Every way to take a measurement away, applied to either side of any suite.
DAMAGE: dict[str, Callable[[SuiteResult], SuiteResult | None]] = {
    "no suite": lambda r: None,
    "no items": lambda r: result(r.suite, []),
    "an item less": lambda r: result(r.suite, [i.correct for i in r.items[:-1]]),
    "an item more": lambda r: result(r.suite, [*(i.correct for i in r.items), True]),
    "an item unscored": lambda r: result(r.suite, [None, *(i.correct for i in r.items[1:])]),
    "other version": lambda r: result(r.suite, [i.correct for i in r.items], version=2),
    "other digest": lambda r: result(r.suite, [i.correct for i in r.items], digest="e"),
    "NaN score": lambda r: r.model_copy(update={"score": float("nan")}),
    "no score": lambda r: r.model_copy(update={"score": None}),
    "other score": lambda r: r.model_copy(update={"score": 1.5}),
    "other name": lambda r: r.model_copy(update={"suite": "x"}),
    "twice the item": lambda r: r.model_copy(update={"items": (*r.items, r.items[0]), "n": r.n + 1}),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("suite", sorted(BEFORE))
@pytest.mark.parametrize("side", ["candidate", "production"])
def test_whatever_is_taken_away_nothing_passes(side: str, suite: str, damage: str) -> None:
    whole = report("cand", AFTER) if side == "candidate" else report("prod", BEFORE)
    broken = replaced(whole, suite, DAMAGE[damage](whole.suites[suite]))
    text = reason(judge(**{side: broken}))
    assert f"{suite} was not measured: " in text


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_worse_item_never_turns_a_rejection_into_a_pass(data: st.DataObject) -> None:
    outcome = st.sampled_from([True, True, True, False])
    suites: Outcomes = {}
    for name, size in (("new", 30), ("general", 60), ("old", 30), ("kept", 20), ("own", 12)):
        suites[name] = [right if data.draw(st.booleans()) else data.draw(outcome) for right in AFTER[name][:size]]
    before = {name: BEFORE[name][: len(values)] for name, values in suites.items()}
    name = data.draw(st.sampled_from(sorted(suites)))
    item = data.draw(st.integers(0, len(suites[name]) - 1))
    worse = {**suites, name: [*suites[name][:item], False, *suites[name][item + 1 :]]}
    assert judge(worse, before).passed <= judge(suites, before).passed


def test_the_policy_is_frozen_and_complete() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        GatePolicy(margn=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="margin of 'old' between 0 and 1"):
        GatePolicy(margins={"old": 5})
    with pytest.raises(TypeError):
        GatePolicy(margins={"old": 0.1}).margins["old"] = 0.5  # type: ignore[index]
    policy = GatePolicy(margins={"old": 0.2})
    assert GatePolicy.model_validate_json(policy.model_dump_json()) == policy
    assert (policy.margin_of("old"), policy.margin_of("x")) == (0.2, policy.margin)


def test_a_margin_for_no_suite_is_found_at_the_start() -> None:
    policy = GatePolicy(margins={"genral": 0.05})
    with pytest.raises(ConfigError, match=r"'genral' that does not exist, did you mean 'general'\?"):
        policy.check_names(["general", "old"])
    GatePolicy(margins={"old": 0.05}).check_names(["general", "old"])


def test_the_gate_loads_no_torch() -> None:
    code = "import sys, incremental_llm.gate; assert 'torch' not in sys.modules; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr
