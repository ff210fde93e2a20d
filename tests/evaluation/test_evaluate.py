"""Every item of every suite is in the report, measured or with the reason why not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.chat import Message
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation import Item, Suite
from incremental_llm.evaluation.evaluate import evaluate
from incremental_llm.evaluation.generate import greedy_answers

STACK = Stack(base=BaseRef(name="tiny", digest="b", template_digest="t"), dtype="float32")
ASKS = tuple((Message(role="user", content=text),) for text in ("How long?", "the capital of France?", "hi"))


def suite(name: str, scorer: Any, *items: dict[str, Any]) -> Suite:
    return Suite(
        name=name,
        version=1,
        scorer=scorer,
        description="d",
        source="s",
        licence="l",
        max_new_tokens=4,
        items=tuple(Item(id=f"i{n}", messages=ASKS[n % 3], **fields) for n, fields in enumerate(items)),
    )


def suites(model: Any, tokenizer: Any) -> list[Suite]:
    """One of each kind; what the texts accept is what the model happens to answer to the first question."""
    answer = greedy_answers(model, tokenizer, ASKS[:1], max_new_tokens=4)[0]
    return [
        suite("facts", "exact", {"accept": (answer,)}, {"accept": ("nothing it says",)}),
        suite("words", "regex", {"pattern": "no such"}),
        suite("options", "choice", *({"choices": ("one", "two words"), "answer": n} for n in (0, 1))),
        suite(
            "replies", "preference", {"chosen": "x", "rejected": "long " * 30}, {"chosen": "a " * 60, "rejected": "x"}
        ),
    ]


def test_each_kind_of_suite_is_measured(tiny_model: Any, tiny_tokenizer: Any) -> None:
    seen: list[tuple[int, int, str]] = []
    measured = suites(tiny_model, tiny_tokenizer)
    report = evaluate(
        tiny_model, tiny_tokenizer, STACK, measured, progress=lambda done, total, name: seen.append((done, total, name))
    )
    assert report.stack_digest == STACK.digest
    assert [i.correct for i in report.suites["facts"].items] == [True, False]
    assert report.suites["words"].score == 0.0
    assert [i.correct for i in report.suites["replies"].items] == [True, False]
    assert report.suites["replies"].items[0].answer == "x" and "-" in report.suites["replies"].items[0].note
    assert {i.answer for i in report.suites["options"].items} <= {"one", "two words"}
    assert all(r.unscored == 0 and r.digest == s.digest for s, r in zip(measured, report.suites.values(), strict=True))
    assert seen[-1] == (7, 7, "replies") and [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert report.tokens > 0 and report.seconds > 0


def test_a_suites_result_does_not_depend_on_the_others(tiny_model: Any, tiny_tokenizer: Any) -> None:
    measured = suites(tiny_model, tiny_tokenizer)
    together = evaluate(tiny_model, tiny_tokenizer, STACK, measured)
    for one in measured:
        assert evaluate(tiny_model, tiny_tokenizer, STACK, [one]).suites[one.name] == together.suites[one.name]


def test_a_broken_model_has_no_score(tiny_model: Any, tiny_tokenizer: Any) -> None:
    import torch

    measured = suites(tiny_model, tiny_tokenizer)
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    report = evaluate(tiny_model, tiny_tokenizer, STACK, measured)
    assert all(result.score is None for result in report.suites.values())


def test_no_suites_and_two_of_a_name_are_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    one = suite("facts", "exact", {"accept": ("x",)})
    for given in ([], [one, one]):
        with pytest.raises(SuiteError, match="one or more suites of different names"):
            evaluate(tiny_model, tiny_tokenizer, STACK, given)


def test_the_front_page_needs_no_torch() -> None:
    code = (
        "import sys, incremental_llm.evaluation as e; assert e.load_suites and 'torch' not in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_the_front_page_names_exist() -> None:
    import incremental_llm.evaluation as package

    assert all(getattr(package, name) for name in package.__all__)
    assert sorted(package.__all__) == package.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018
