"""Filters: each objects for its own reason, and says nothing otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from incremental_llm.chat import Message
from incremental_llm.dataset import CompileSettings, DropReason, Example, PairExample, SftExample
from incremental_llm.dataset.decontaminate import SuiteIndex
from incremental_llm.dataset.filters import Filters

QUESTION = "How many days do I have to return a pair of boots?"


def sft(prompt: str = "Can I?", completion: str = "Yes.", role: Any = "user") -> SftExample:
    return SftExample(prompt=(Message(role=role, content=prompt),), completion=completion, sources=(), users=())


def filters(**settings: Any) -> Filters:
    return Filters(CompileSettings.model_validate(settings), SuiteIndex([QUESTION]))


def reason(chosen: Filters, example: Example) -> DropReason | None:
    return chosen.prompt_reason(example.prompt) or chosen.reply_reason(example.texts)


def test_a_good_example_passes() -> None:
    assert reason(filters(), sft()) is None


@pytest.mark.parametrize("bad", [sft(completion=" \n"), sft(prompt=" "), sft(role="assistant")])
def test_unparsable(bad: SftExample) -> None:
    assert reason(filters(), bad) is DropReason.UNPARSABLE


def test_a_prompt_without_messages_is_unparsable() -> None:
    assert reason(filters(), sft().model_copy(update={"prompt": ()})) is DropReason.UNPARSABLE


def test_too_long() -> None:
    strict = filters(max_prompt_chars=6, max_completion_chars=4)
    assert reason(strict, sft("Can I?", "Yes.")) is None
    assert reason(strict, sft("Can I ?", "Yes.")) is DropReason.TOO_LONG
    assert reason(strict, sft("Can I?", "Yes!!")) is DropReason.TOO_LONG


def test_personal_data_in_any_text() -> None:
    address = "mira.b@example.com"
    pair = PairExample(prompt=sft().prompt, chosen="Yes.", rejected=f"Ask {address}", sources=(), users=())
    for bad in (sft(f"I am {address}"), sft(completion=address), pair):
        assert reason(filters(drop_personal_data=True), bad) is DropReason.PERSONAL_DATA
        assert reason(filters(drop_personal_data=False), bad) is None
        assert reason(filters(drop_personal_data=True, public_texts=("@EXAMPLE.com",)), bad) is None
    assert reason(filters(), sft("I am mira.b@example.com")) is None  # it is replaced before
    assert reason(filters(), pair) is reason(filters(), sft(completion=address)) is DropReason.PERSONAL_DATA


@pytest.mark.parametrize("text", [QUESTION, QUESTION.upper() + "?", QUESTION.replace("boots", "bots")])
def test_in_a_suite(text: str) -> None:
    assert reason(filters(), sft(text)) is DropReason.IN_SUITE


def test_a_suites_question_counts_in_any_turn() -> None:
    turns = (Message(role="user", content=QUESTION), Message(role="assistant", content="30."), *sft().prompt)
    assert reason(filters(), sft().model_copy(update={"prompt": turns})) is DropReason.IN_SUITE
    said = (Message(role="user", content="Hello"), Message(role="assistant", content=QUESTION), *sft().prompt)
    assert reason(filters(), sft().model_copy(update={"prompt": said})) is None


def test_another_number_or_phrasing_is_another_question() -> None:
    index = SuiteIndex(["Is an order of 50 euros shipped for free to all of the islands?"])
    assert "Is an order of 85 euros shipped for free to all of the islands?" not in index
    assert "Is an order of 50 euros not shipped for free to all of the islands?" not in index
    assert "Do you ship 50 euros' worth to the islands at no cost?" not in index
    assert "Is an order of 50 euros shiped for free to all of the islands" in index


def test_a_question_with_words_around_it_is_still_that_question() -> None:
    index = SuiteIndex(["What is the prefix of a tracking number?", "How much is it?"])
    assert "Good morning. What is the prefix of a tracking number? I lost it" in index
    assert "My friend asks: what is THE prefix of a tracking number" in index
    assert "What is the prefix of my tracking number, and the date?" not in index
    assert "The tent looks nice. How much is it?" not in index  # four words are common speech


def test_an_empty_suite_holds_nothing() -> None:
    assert "" not in SuiteIndex(["", "  "])
    assert "anything" not in SuiteIndex([])
