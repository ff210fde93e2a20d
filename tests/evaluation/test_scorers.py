"""Right is right and wrong is wrong, for every scorer that reads text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.evaluation.scorers import (
    TEXT_SCORERS,
    bare,
    choice,
    contains,
    exact,
    normalise,
    preference,
    regex,
    stands_in,
)


def as_terms(scorer: str, term: str) -> tuple[str, ...]:
    """The term as the scorer takes it: a pattern for regex."""
    return (re.escape(normalise(term)),) if scorer == "regex" else (term,)


# What every text scorer agrees on: (answer, accepted, distractors, right).
CONFORMANCE = [
    ("Paris", "Paris", (), True),
    ("paris", "Paris", (), True),
    ("PARIS", "paris", (), True),
    ("  Paris\n", "Paris", (), True),
    ("", "Paris", (), False),
    ("   ", "Paris", (), False),
    ("...", "Paris", (), False),
    ("Lyon", "Paris", (), False),
    ("Paris", "Paris", ("Paris",), False),
    ("Paris", "Paris", ("Lyon",), True),
    ("Paris", "Paris", ("Par",), True),
    ("1,000", "1000", (), True),
    ("1000", "1,000", (), True),
    ("12,345,678", "12345678", (), True),
    ("45.00", "45", (), True),
    ("5 %", "5%", (), True),
    ("$ 5", "$5", (), True),
    ("it’s free", "it's free", (), True),
    ("3–5 days", "3-5 days", (), True),
    ("ｆｒｅｅ", "free", (), True),
    ("45  days", "45 days", (), True),
    ("30 days", "45 days", (), False),
    ("4.5", "45", (), False),
    ("Straße", "STRASSE", (), True),
    ("東京", "東京", (), True),
]


@pytest.mark.parametrize("scorer", sorted(TEXT_SCORERS))
@pytest.mark.parametrize(("answer", "accepted", "distractors", "right"), CONFORMANCE)
def test_conformance(scorer: str, answer: str, accepted: str, distractors: tuple[str, ...], right: bool) -> None:
    assert TEXT_SCORERS[scorer](answer, as_terms(scorer, accepted), distractors) is right


@pytest.mark.parametrize("scorer", sorted(TEXT_SCORERS))
@given(answer=st.text(max_size=30), distractor=st.text(min_size=1, max_size=5))
def test_a_distractor_never_turns_wrong_into_right(scorer: str, answer: str, distractor: str) -> None:
    score = TEXT_SCORERS[scorer]
    assert score(answer, as_terms(scorer, "x1"), (distractor,)) <= score(answer, as_terms(scorer, "x1"), ())


@pytest.mark.parametrize("scorer", sorted(TEXT_SCORERS))
def test_no_accepted_term_is_never_right(scorer: str) -> None:
    assert not TEXT_SCORERS[scorer]("anything", (), ())


@given(st.text(max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=30))
def test_a_term_stands_in_itself(text: str) -> None:
    assert stands_in(text, text) or not normalise(text) or normalise(text).startswith("-")


@pytest.mark.parametrize(
    ("term", "answer", "stands"),
    [
        ("30", "within 30 days", True),
        ("30", "(30)", True),
        ("30", "a 30-day window", True),
        ("30", "30%", True),
        ("30", "It takes 30.", True),
        ("30", "30, or less", True),
        ("30", "130", False),
        ("30", "300", False),
        ("30", "30.5", False),
        ("30", "30,5", False),
        ("5", "2.5", False),
        ("5", "3-5 days", True),
        ("5", "it is -5 there", False),
        ("5", "-5", False),
        ("ship", "shipping", False),
        ("ship", "We ship.", True),
        ("France", "France's capital", True),
        ("1000", "about 1,000 items", True),
        ("000", "about 1,000 items", False),
        ("1000", "1,0000", False),
        ("$5", "It costs $5.", True),
        ("$5", "It costs $5.50.", False),
        ("京", "東京都", True),
        ("free returns", "Free\nreturns for all", True),
        ("", "anything", False),
    ],
)
def test_whole_words_and_numbers(term: str, answer: str, stands: bool) -> None:
    assert stands_in(term, answer) is stands


def test_contains_wants_one_accepted_term_and_no_distractor() -> None:
    assert contains("You have 45 days.", ("45 days", "forty-five days"), ("30 days",))
    assert not contains("It was 30 days and is now 45 days.", ("45 days",), ("30 days",))


@pytest.mark.parametrize("answer", ["Paris.", '"Paris"', "**Paris**", "Paris!", "`paris`", "(Paris)"])
def test_exact_ignores_what_stands_around(answer: str) -> None:
    assert exact(answer, ("Paris",))


def test_exact_refuses_more_than_the_term() -> None:
    assert not exact("It is Paris.", ("Paris",))
    assert bare("'Paris.'") == "paris"


def test_regex_ignores_case_and_can_be_anchored() -> None:
    assert regex("The code is AB12", (r"\bAB\d\d\b",))
    assert not regex("The code is AB12", (r"^AB\d\d$",))
    assert not regex("The code is AB12, not CD34", (r"AB\d\d",), ("CD34",))


def test_choice_compares_per_token() -> None:
    assert choice([-4.0, -6.0], [1, 3]) == 1  # -4 a token against -2 a token
    assert choice([-2.0, -2.0], [1, 1]) == 0


@pytest.mark.parametrize(
    ("logps", "tokens"), [([], []), ([float("nan"), -1.0], [1, 1]), ([-1.0], [0]), ([-1.0], [1, 2])]
)
def test_choice_refuses_what_was_not_measured(logps: list[float], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="expected finite log-likelihoods"):
        choice(logps, tokens)


def test_preference_is_strict() -> None:
    assert preference(-1.0, -2.0)
    assert not preference(-2.0, -1.0)
    assert not preference(-1.0, -1.0)
    with pytest.raises(ValueError, match="finite"):
        preference(float("nan"), -1.0)
