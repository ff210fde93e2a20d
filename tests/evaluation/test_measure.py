"""What production was asked is kept beside its evaluations, and asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.chat import Message
from incremental_llm.errors import IntegrityError
from incremental_llm.evaluation.measure import Measurement

ASKED = [(Message(role="user", content=text),) for text in ("hi", "How long does shipping take?")]


@pytest.fixture
def stack() -> Stack:
    return Stack(base=BaseRef(name="tiny", digest="0" * 64, template_digest="0" * 64), adapters=(), dtype="float32")


@pytest.fixture
def measured(tmp_path: Path, tiny_model_dir: Path) -> Measurement:
    return Measurement(tmp_path / "evaluations", tiny_model_dir, tmp_path / "objects", lambda *_: None)


def test_what_was_made_once_is_read_and_damage_is_seen(measured: Measurement, stack: Stack) -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return ["half a pair \ud800", None, 0.1]

    first = measured.remembered(stack, "x", "a" * 64, make)
    assert measured.remembered(stack, "x", "a" * 64, make) == first == ["half a pair \ud800", None, 0.1]
    measured.remembered(stack, "x", "b" * 64, make)
    assert len(made) == 2
    for path in measured.folder.glob("*/x-aaaa*/answers.json"):
        path.write_text("[]", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"answers\.json differ"):
        measured.remembered(stack, "x", "a" * 64, make)


def test_what_another_version_measured_is_measured_anew(
    measured: Measurement, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from incremental_llm.evaluation import measure

    made: list[int] = []
    for number in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(measure, "version", lambda _package, number=number: number)
        measured.remembered(stack, "x", "a" * 64, lambda: made.append(1))
    assert len(made) == 2


def test_an_answer_that_does_not_end_and_a_prompt_that_does_not_fit_are_none(
    measured: Measurement, stack: Stack
) -> None:
    assert measured.ended_answers(stack, ASKED, 3, "the base", "answers") == [None, None]
    too_long = [(Message(role="user", content="word " * 600),)]
    assert measured.ended_answers(stack, too_long, 3, "the base", "answers") == [None]
    found = measured.mean_logps(stack, [(ASKED[0], "yes"), (too_long[0], "yes")], "the base", "is measured")
    assert found[0] is not None and -20 < found[0] < 0 and found[1] is None


def test_turns_are_those_of_the_stack(measured: Measurement, stack: Stack) -> None:
    turns = measured.turns(stack, (), 4, "the base", max_new_tokens=80, temperature=1.5, top_p=1.0, seed=1)
    assert len(turns) == 4
