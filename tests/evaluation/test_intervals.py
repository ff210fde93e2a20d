"""Intervals hold what they promise; the numbers are those of the docstrings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.errors import SuiteError
from incremental_llm.evaluation.intervals import items_to_resolve, minimum_detectable_effect, paired_bootstrap, wilson


def outcomes(values: list[int]) -> dict[str, float]:
    return {f"i{index:03d}": float(value) for index, value in enumerate(values)}


def test_wilson_numbers() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_keeps_a_width(case: tuple[int, int]) -> None:
    right, n = case
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= right <= n"):
        wilson(right, n)


def test_paired_bootstrap_agrees_with_the_normal_approximation() -> None:
    before = outcomes([1] * 100 + [0] * 100)
    after = outcomes([0] * 10 + [1] * 90 + [1] * 30 + [0] * 70)
    found = paired_bootstrap(before, after)
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * 0.0308, 0.1 + 1.96 * 0.0308), abs=0.006)
    assert (len(found.lost), len(found.gained), found.n) == (10, 30, 200)
    assert found.discordant == pytest.approx(0.2)


def test_paired_bootstrap_repeats_whatever_the_order() -> None:
    before, after = outcomes([1, 0, 1, 1, 0, 0]), outcomes([1, 1, 0, 1, 0, 1])
    turned = dict(reversed(list(after.items())))
    assert paired_bootstrap(before, after) == paired_bootstrap(before, turned)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.data())
def test_a_worse_item_never_raises_the_interval(pairs: list[tuple[bool, bool]], data: st.DataObject) -> None:
    before, after = outcomes([b for b, _ in pairs]), outcomes([a for _, a in pairs])
    worse = after | {data.draw(st.sampled_from(sorted(after))): 0.0}
    was = paired_bootstrap(before, after, resamples=1000)
    now = paired_bootstrap(before, worse, resamples=1000)
    assert now.low <= was.low and now.high <= was.high and now.difference <= was.difference


def test_chunked_draws_cover_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("incremental_llm.evaluation.intervals._CHUNK", 100)
    found = paired_bootstrap(outcomes([1, 0] * 20), outcomes([0, 1] * 20), resamples=2000)
    assert found.low < 0 < found.high


def test_paired_bootstrap_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(SuiteError, match="same items on both sides, found 2 on one side only"):
        paired_bootstrap({"a": 1.0}, {"b": 1.0})
    with pytest.raises(SuiteError, match="found none"):
        paired_bootstrap({}, {})
    with pytest.raises(SuiteError, match="NaN"):
        paired_bootstrap({"a": 1.0}, {"a": float("nan")})


def test_minimum_detectable_effect_numbers() -> None:
    assert minimum_detectable_effect(200, 0.1) == pytest.approx(0.064, abs=5e-4)
    assert minimum_detectable_effect(800, 0.1) < minimum_detectable_effect(200, 0.1)
    assert minimum_detectable_effect(40, 0.0) > 0
    assert minimum_detectable_effect(1, 1.0) == 1.0
    with pytest.raises(ValueError, match="n >= 1"):
        minimum_detectable_effect(0, 0.1)


def test_items_to_resolve_numbers() -> None:
    assert (items_to_resolve(0.05), items_to_resolve(0.1)) == (59, 29)
    assert 0.95**59 <= 0.05 < 0.95**58
    with pytest.raises(ValueError, match="between 0 and 1"):
        items_to_resolve(0)


def test_a_confidence_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=1.0)
