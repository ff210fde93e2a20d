"""Caps on shares of loss weight: they hold after scaling, nothing is scaled up, and order does not matter."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.dataset.shares import balanced, bound, capped, capped_both, carriers, largest, level

_WEIGHTS = st.floats(0.01, 4.0)
_PEOPLE = st.sampled_from([f"u{n}" for n in range(12)])
_SOLO = st.lists(st.tuples(_WEIGHTS, _PEOPLE), min_size=1, max_size=60)
_SHARE = st.sampled_from([0.05, 0.1, 0.3, 1.0])


def test_one_heavy_user_gets_the_cap_and_no_more():
    weights, users = [1.0] * 60, ["heavy"] * 30 + [f"u{n}" for n in range(30)]
    after = capped(weights, users, 0.1)
    assert largest(weights, users) == 0.5
    assert largest(after, users) == pytest.approx(0.1)
    assert after[30:] == weights[30:]
    assert sum(after[:30]) == pytest.approx(30 / 9)  # x / (30 + x) = 0.1


@pytest.mark.parametrize(("people", "share"), [(1, 1.0), (2, 1.0), (4, 0.5), (20, 0.1), (90, 0.1), (0, 1.0)])
def test_a_small_team_is_asked_for_no_less_than_twice_an_equal_share(people, share):
    assert bound(0.1, people) == share


@settings(deadline=None)
@given(rows=_SOLO, share=_SHARE)
def test_the_cap_holds_after_scaling(rows, share):
    weights, users = [weight for weight, _ in rows], [user for _, user in rows]
    after = capped(weights, users, share)
    assert all(new <= old for new, old in zip(after, weights, strict=True))
    assert all(new > 0 for new in after)
    assert largest(after, users) <= bound(share, len(set(users))) + 1e-6
    uncapped = largest(weights, users) <= bound(share, len(set(users)))
    assert (after == weights) == uncapped or largest(weights, users) == pytest.approx(bound(share, len(set(users))))


@settings(deadline=None)
@given(rows=_SOLO, share=_SHARE, seed=st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter(rows, share, seed):
    turned = seed.sample(range(len(rows)), len(rows))
    after = capped([w for w, _ in rows], [u for _, u in rows], share)
    again = capped([rows[n][0] for n in turned], [rows[n][1] for n in turned], share)
    assert again == pytest.approx([after[n] for n in turned])


def test_nobodys_weight_is_not_scaled_and_counts_in_the_whole():
    after = capped([90.0, 6.0, 4.0], [None, "a", "b"], 0.05)
    assert after == [90.0, 6.0, 4.0]  # twice an equal share of two people is all


@settings(deadline=None)
@given(rows=st.lists(st.tuples(_WEIGHTS, st.sets(_PEOPLE, min_size=1, max_size=3), st.integers(0, 9)), max_size=40))
def test_both_caps_together_never_drive_the_weight_to_nothing(rows):
    weights = [weight for weight, _, _ in rows]
    people, messages = carriers(weights, [users for _, users, _ in rows]), [message for _, _, message in rows]
    after = capped_both(weights, messages, people, 0.1, 0.1)
    assert all(0 < new <= old + 1e-12 for new, old in zip(after, weights, strict=True))


def test_both_caps_hold_where_they_can():
    weights = [1.0] * 100
    people = ["heavy" if n < 40 else f"u{n}" for n in range(100)]
    messages = [60 if n >= 60 else n for n in range(100)]
    after = capped_both(weights, messages, people, 0.1, 0.1)
    assert largest(after, people) <= 0.1 + 1e-6
    assert largest(after, messages) <= 0.1 + 1e-6


def test_level_of_what_needs_no_cap_is_infinite():
    assert level({"a": 1.0, "b": 1.0}, 0.0, 0.5) == math.inf
    assert level({}, 0.0, 0.5) == math.inf


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(_WEIGHTS, st.sets(_PEOPLE, max_size=3), st.integers(0, 9)), max_size=60),
    user_share=_SHARE,
    message_share=_SHARE,
)
def test_the_cap_of_people_always_holds(rows, user_share, message_share):
    weights = [weight for weight, _, _ in rows]
    people, messages = carriers(weights, [users for _, users, _ in rows]), [message for _, _, message in rows]
    after = capped_both(weights, messages, people, message_share, user_share)
    assert largest(after, people) <= bound(user_share, len(set(people) - {None})) + 1e-6


@settings(deadline=None)
@given(rows=st.lists(st.sets(_PEOPLE, min_size=1, max_size=3), min_size=1, max_size=40))
def test_a_carrier_backs_the_example_and_nobody_beside_backs_less(rows):
    backed = {user: sum(user in users for users in rows) for users in rows for user in users}
    for users, carrier in zip(rows, carriers([1.0] * len(rows), rows), strict=True):
        assert carrier in users
        assert backed[carrier] == min(backed[user] for user in users)


def test_balance_scales_the_heavier_side_no_lower_than_half_and_never_an_only_one():
    assert balanced([1.0] * 5, [True, False, False, False, False], 4.0) == [1.0] * 5
    assert balanced([2.0, 2.0, 2.0], [True, True, False], 1.0) == [1.0, 1.0, 2.0]
    assert balanced([1.0, 400.0], [False, True], 4.0) == [1.0, 200.0]
    assert balanced([1.0, 1.0], [False, False], 1.0) == [1.0, 1.0]
    assert balanced([], [], 1.0) == []


def test_where_both_caps_cannot_hold_that_of_people_does_from_the_weights_as_they_were():
    people = ["heavy" if n < 50 else f"u{n}" for n in range(100)]
    messages = [n if n < 50 else 99 for n in range(100)]
    after = capped_both([1.0] * 100, messages, people, 0.1, 0.1)
    assert largest(after, people) == pytest.approx(0.1)
    assert largest(after, messages) > 0.1
    assert after[50:] == [1.0] * 50
