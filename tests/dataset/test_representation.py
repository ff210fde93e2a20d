"""Whom the feedback does not speak for: a group that is silent stands first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.dataset import represent
from incremental_llm.dataset.representation import risk_ratio


def group(found, dimension: str, value: str):
    return next(one for one in found.groups if (one.dimension, one.value) == (dimension, value))


@pytest.fixture
def shop(log):
    """Three topics of 40 replies each; of returns and boots half are judged, of tents none."""
    for n in range(120):
        topic = ("returns", "boots", "tents")[n % 3]
        name = log.served(f"i{n}", f"Question {n}?", user=f"u{n % 30}", after=600, metadata={"topic": topic})
        if topic != "tents" and n % 2:
            log.down(f"t{n}", name, f"u{n % 30}")
    return log


def test_the_silent_group_stands_first(shop):
    found = represent(shop.events, {"i1", "t1"})
    assert (found.served, found.judged, found.used) == (120, 40, 1)
    first = found.groups[0]
    assert (first.dimension, first.value, first.served, first.judged, first.used) == ("topic", "tents", 40, 0, 0)
    assert first.high < 0.5 and first.low < first.ratio < first.high
    assert "feedback hardly speaks for topic 'tents': 0 of 40 replies judged, 0.02 (0.00 to 0.39)" in found.sentence
    assert group(found, "topic", "boots").ratio > 1
    assert [one.high for one in found.groups] == sorted(one.high for one in found.groups)


def test_an_even_log_is_said_to_lack_nobody(log):
    for n in range(200):
        log.up(f"t{n}", log.served(f"i{n}", user=f"u{n % 20}", metadata={"topic": f"topic {n % 2}"}))
    assert represent(log.events).sentence == ""
    assert all(one.low <= 1 <= one.high for one in represent(log.events).groups)


def test_users_are_grouped_by_how_much_they_ask(log):
    for n in range(9):
        log.served(f"i{n}", user=f"rare{n}")
    for n in range(11):
        log.up(f"t{n}", log.served(f"b{n}", user="busy"), "busy")
    found = represent(log.events)
    assert (group(found, "user activity", "tenth  9 of users").served, found.silent_users, found.users) == (9, 9, 10)
    assert group(found, "user activity", "tenth 10 of users").judged == 11
    assert found.loudest_share == 1.0


def test_groups_by_policy_time_length_turn_and_exploring(log):
    log.served("i1", "Short?", metadata={"serving": {"policy": "production@7", "explored": True}})
    long = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "x" * 201},
    ]
    log.served(
        "i2", messages=long, metadata={"serving": {"policy": "production@8", "explored": False}}, after=86400 * 1.5
    )
    log.served("i3", "Short?")
    named = {(one.dimension, one.value) for one in represent(log.events).groups}
    assert named >= {
        ("policy", "production@7"), ("policy", "production@8"), ("policy", "m"), ("explored", "yes"),
        ("explored", "no"), ("day", "Sunday"), ("day", "Tuesday"), ("hour (UTC)", "12 to 14"), ("turn", "second"),
        ("hour (UTC)", "00 to 02"), ("question's length", "up to 50"), ("question's length", "201 to 1000"),
    }  # fmt: skip


def test_every_kind_of_feedback_judges_and_feedback_on_other_replies_does_not(log):
    for n in range(8):
        log.served(f"i{n}")
    log.up("t1", "i0")
    log.corrected("k1", "i1")
    log.preferred("p1", "i2", "i3")
    log.ranked("o1", "i4", "i3")
    log.copied("y1", "i5")
    log.rephrased("r1", "i6", "i0")
    log.add("ping", "x1", interaction="i7")
    assert represent(log.events).judged == 7
    elsewhere = represent(log.events[4:])
    assert (elsewhere.served, elsewhere.judged) == (4, 3)


def test_an_empty_log_has_nothing_to_compare() -> None:
    found = represent([])
    assert (found.served, found.groups, found.sentence, found.loudest_share) == (0, (), "", 0.0)


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_the_interval_holds_the_ratio_and_turns_with_the_sides(n: int, m: int, data: st.DataObject) -> None:
    a, c = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    ratio, low, high = risk_ratio(a, n, c, m)
    assert 0 < low <= ratio <= high < float("inf")
    turned = risk_ratio(c, m, a, n)
    assert turned == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_the_interval_of_the_docstring() -> None:
    assert risk_ratio(0, 50, 40, 50) == pytest.approx((0.0123, 0.00078, 0.196), rel=0.02)
