"""Exploring: known chances, the same answer for the same request, and a sample that is never trained on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.errors import InputError
from incremental_llm.feedback import parse_event
from incremental_llm.feedback.exploration import chance, choose, is_held_out
from incremental_llm.feedback.serving import serving_of

ARMS = ("production@7", "production@8", "candidate@9")


def test_the_logged_chances_are_those_that_happen() -> None:
    chosen = [choose(f"request {n}", ARMS, share=0.3) for n in range(20_000)]
    shares = Counter(one.policy for one in chosen)
    for one in set(chosen):
        assert shares[one.policy] / len(chosen) == pytest.approx(one.propensity, abs=0.01)
    assert {one.policy: one.propensity for one in chosen} == pytest.approx({ARMS[0]: 0.8, ARMS[1]: 0.1, ARMS[2]: 0.1})
    assert sum(one.explored for one in chosen) / len(chosen) == pytest.approx(0.3, abs=0.01)
    assert all(one.explored for one in chosen if one.policy != ARMS[0])


@given(st.text(), st.integers(1, 6), st.floats(0.001, 1), st.integers(0, 9))
def test_a_request_gets_the_same_policy_and_chances_sum_to_one(name: str, k: int, share: float, seed: int) -> None:
    arms = [f"p@{n}" for n in range(k)]
    one = choose(name, arms, share, seed)
    assert one == choose(name, arms, share, seed)
    assert 0 < one.propensity <= 1
    first = 1 - share + share / k
    assert first + (k - 1) * share / k == pytest.approx(1)
    assert one.propensity == pytest.approx(first if one.policy == arms[0] else share / k)


def test_another_seed_explores_other_requests() -> None:
    explored = [{n for n in range(500) if choose(str(n), ARMS, 0.2, seed).explored} for seed in (0, 1)]
    assert explored[0] != explored[1]


def test_without_a_share_one_policy_answers_everything() -> None:
    one = choose("r", ["production@7"], share=0)
    assert (one.policy, one.propensity, one.explored) == ("production@7", 1.0, False)


@pytest.mark.parametrize(
    ("policies", "share"), [((), 0.1), (("a", "a"), 0.1), (("a", "b"), 0), (("a",), 1.1), (("a",), float("nan"))]
)
def test_what_could_not_be_weighed_is_refused(policies: tuple[str, ...], share: float) -> None:
    with pytest.raises(InputError, match="exploration: expected"):
        choose("r", policies, share)


def test_a_choice_is_a_serving_block() -> None:
    block = choose("r", ARMS, 0.2).serving(sampling={"temperature": 0.7}, logprob=-3.5)
    asked = {
        "conversation": "c",
        "user": "u",
        "messages": [{"role": "user", "content": "?"}],
        "reply": "",
        "model": "m",
    }
    line = {"type": "interaction", "id": "i", "time": "2026-11-01T12:00:00Z", "metadata": {"serving": block}, **asked}
    served = serving_of(parse_event(line).metadata)
    assert served is not None and served.model_dump(mode="json") == block


def test_the_held_out_sample_is_a_share_that_only_grows() -> None:
    names = [f"c{n}" for n in range(20_000)]
    small, large = ({name for name in names if is_held_out(name, share)} for share in (0.02, 0.05))
    assert len(small) / len(names) == pytest.approx(0.02, abs=0.004)
    assert small < large
    assert not any(is_held_out(name, 0.0) for name in names)
    explored = [name for name in names if choose(name, ARMS, 0.5).explored]
    both = len(large.intersection(explored)) / len(explored)
    assert both == pytest.approx(0.05, abs=0.01)  # being held out and being explored are independent


def test_chance_is_fixed_for_ever() -> None:
    """Who was held out must stay so in every later version."""
    assert chance("c1", "held out") == pytest.approx(HELD_OUT_C1, abs=1e-12)


HELD_OUT_C1 = 0.8475013433866609
