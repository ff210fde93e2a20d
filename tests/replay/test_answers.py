"""An answer takes the stored one's place only where it says the same; a wrong one never does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.chat import Message
from incremental_llm.dataset.examples import PairExample, SftExample, UnpairedExample
from incremental_llm.replay import ReplayBuffer, ReplaySettings, mix
from incremental_llm.replay.answers import answered_anew, is_right, loss_of, replayed_sft, says_it_all

STORED = "You can return boots within 30 days."
COMMON = {"prompt": (Message(role="user", content="q"),), "sources": ("k1",), "users": ("u1",)}


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (STORED, True),
        ("you can return the boots within 30 days!", True),
        ("Well, you can return boots to us within 30 days.", True),
        ("You can return boots within 45 days.", False),
        ("You can return boats within 30 days.", False),
        ("You cannot return boots within 30 days.", False),
        ("You can not return boots within 30 days.", False),
        ("You can return 2 boots within 30 days.", False),
        ("Within 30 days you can return boots.", False),  # says it, but order is meaning too: "A before B"
        ("You can return boots.", False),
        (f"{STORED} But only with a receipt, unworn, in their own box, and never on a Sunday or in the sale.", False),
        ("", False),
    ],
)
def test_an_answer_says_what_is_stored_or_something_else(answer: str, same: bool) -> None:
    assert says_it_all(answer, STORED, 80) is same


@given(st.lists(st.sampled_from(["fox", "owl", "hen", "7", "not", "the"]), min_size=1, max_size=8), st.data())
def test_one_word_that_is_exchanged_is_another_statement_at_any_agreement(
    words: list[str], data: st.DataObject
) -> None:
    assert says_it_all(" ".join(words).upper() + ".", " ".join(words), 100)
    place = data.draw(st.integers(0, len(words) - 1))
    if words[place] != "the":  # filler says nothing
        other = [*words[:place], "eel", *words[place + 1 :]]
        assert not says_it_all(" ".join(other), " ".join(words), 0)


def test_what_is_right_depends_on_what_an_example_wants() -> None:
    sft = SftExample(completion=STORED, **COMMON)
    pair = PairExample(chosen=STORED, rejected="No.", **COMMON)
    up, down = (UnpairedExample(completion=STORED, desirable=wanted, **COMMON) for wanted in (True, False))
    for answer, good in ((STORED, True), ("No.", False), (None, False)):
        assert [is_right(e, answer, 80) for e in (sft, pair, up, down)] == [good, good, good, not good]


def test_losses_are_those_of_the_formulas_and_never_infinite() -> None:
    sft = SftExample(completion="a", **COMMON)
    pair = PairExample(chosen="a", rejected="b", **COMMON)
    up, down = (UnpairedExample(completion="a", desirable=wanted, **COMMON) for wanted in (True, False))
    assert loss_of(sft, [-1.5]) == loss_of(up, [-1.5]) == 1.5
    assert loss_of(down, [math.log(0.25)]) == pytest.approx(-math.log(0.75))
    assert loss_of(pair, [-1.0, -3.0]) == pytest.approx(math.log(1 + math.exp(-2)))
    assert loss_of(pair, [-2000.0, -1.0]) == pytest.approx(1999)
    assert math.isfinite(loss_of(down, [0.0])) and loss_of(down, [-2000.0]) == 0 and loss_of(sft, [0.0]) == 0


def test_only_replayed_sft_rows_are_answered_anew_and_all_are_counted() -> None:
    def sft(name: str) -> SftExample:
        prompt = (Message(role="user", content=name),)
        return SftExample(prompt=prompt, completion=STORED, weight=0.5, sources=(name,), users=("u1",))

    old = [sft(name) for name in ("same", "wrong", "unended")]
    new = [sft("new"), PairExample(chosen=STORED, rejected="No.", **COMMON)]
    buffer = ReplayBuffer().updated([*old, PairExample(chosen="Yes", rejected="No", **COMMON)], 1, 0)
    mixture = mix(new, buffer, ReplaySettings(), 0)
    assert {e.id for e in replayed_sft(mixture)} == {e.id for e in old}
    own = "You can return boots within 30 days, yes"
    answers = {old[0].id: own, old[1].id: "You can return boots within 45 days.", old[2].id: None}
    anew = answered_anew(mixture, answers, 80)
    assert (anew.anew, anew.kept, anew.unended) == (1, 2, 1)
    assert anew.sentence == (
        "production's own answers stand in 1 of 3 replayed SFT rows; 2 keep the stored one, which it does not give "
        "(1 answers had not ended)"
    )
    before = {row.example.sources: row for row in mixture.rows}
    for row in anew.mixture.rows:
        if row.example.sources == ("same",):
            assert row == before["same",].model_copy(
                update={"example": old[0].model_copy(update={"completion": own})}
            )  # where it is from, whom, and what it weighs stay
        else:
            assert row in mixture.rows
    assert anew.mixture.realised == mixture.realised
