"""Rows that production writes itself: as many as wanted, and every question that was left out has a reason."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.chat import Conversation, Message
from incremental_llm.replay.written import Written, written


def reply(prompts: Sequence[Conversation]) -> list[str | None]:
    """Answers everything but "mute"."""
    return [None if p[-1].content == "mute" else f"about {p[-1].content}" for p in prompts]


def refuse(prompt: Conversation, answer: str | None) -> str | None:
    """No question about "suites", no answer about "secrets"."""
    if answer is None:
        return "in_suite" if prompt[-1].content == "suites" else None
    return "personal_data" if "secrets" in answer else None


def test_rows_come_in_the_order_of_the_turns_and_the_rest_is_counted() -> None:
    turns = ["boots", None, "Boots!", "suites", " mute", "secrets", "tents", "maps", "more than wanted"]
    before = (Message(role="system", content="Be brief."),)
    rows = written(turns, reply, refuse, 3, before)
    assert [(e.prompt, e.completion) for e in rows.examples] == [
        ((*before, Message(role="user", content=text)), f"about {text}") for text in ("boots", "tents", "maps")
    ]
    reasons = ("duplicate", "in_suite", "personal_data", "unended_answer", "unended_question")
    assert rows.left_out == dict.fromkeys(reasons, 1)
    assert rows.sentence == (
        "production wrote 3 rehearsal rows itself; left out: 1 duplicate, 1 in_suite, 1 personal_data, "
        "1 unended_answer, 1 unended_question"
    )
    assert all(item.increment == 7 and item.example.sources == item.example.users == () for item in rows.items(7))
    assert Written.model_validate(rows.model_dump(mode="json")) == rows


@given(
    st.lists(st.sampled_from([None, "", "a", "b", "suites", "mute", "secrets"]) | st.text(max_size=3), max_size=20),
    st.integers(0, 9),
)
def test_no_more_than_wanted_and_none_is_refused_or_twice(turns: list[str | None], wanted: int) -> None:
    rows = written(turns, reply, refuse, wanted)
    texts = [e.prompt[-1].content for e in rows.examples]
    assert len(texts) == len(set(texts)) <= wanted
    assert not {"suites", "mute", "secrets"} & set(texts)
    assert len(texts) + sum(rows.left_out.values()) <= len(turns)
    if len(texts) < wanted:
        assert len(texts) + sum(rows.left_out.values()) == len(turns)
