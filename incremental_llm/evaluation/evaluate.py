"""Measure a model on suites: one call, every item's outcome kept.

The one design fact: nothing is left out quietly. An item that the model cannot answer is in the report without an
outcome and with the reason, and the gate does not pass such a report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from incremental_llm.adapters.stack import Stack
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation.generate import Likelihood, Progress, completion_logps, generate
from incremental_llm.evaluation.results import EvaluationReport, ItemResult, SuiteResult
from incremental_llm.evaluation.scorers import TEXT_SCORERS, choice, preference
from incremental_llm.evaluation.suites import Item, Suite

SuiteProgress = Callable[[int, int, str], None]


def evaluate(
    model: Any,
    tokenizer: Any,
    stack: Stack,
    suites: Sequence[Suite],
    *,
    progress: SuiteProgress | None = None,
    batch_tokens: int | None = None,
) -> EvaluationReport:
    """Measure `model`, which is `stack` as it would be served, on every suite.

    `progress(done, total, suite)` counts items over all suites. A suite's result does not depend on which
    suites stand beside it.

    Raises:
        SuiteError: no suites, or two of one name.
    """
    if not suites or len({suite.name for suite in suites}) != len(suites):
        names = ", ".join(suite.name for suite in suites) or "none"
        raise SuiteError(f"expected one or more suites of different names, found {names}. Name each suite once.")
    start = time.monotonic()
    total, finished, tokens = sum(len(suite.items) for suite in suites), 0, 0
    results = {}
    for suite in suites:

        def report(done: int, of: int, *, before: int = finished, suite: Suite = suite) -> None:
            if progress is not None:
                progress(before + len(suite.items) * done // of, total, suite.name)

        measure = _MEASURES.get(suite.scorer, _measure_texts)
        items, used = measure(model, tokenizer, suite, report, batch_tokens)
        results[suite.name] = SuiteResult.of(suite.name, suite.version, suite.digest, items)
        finished, tokens = finished + len(suite.items), tokens + used
    return EvaluationReport(stack_digest=stack.digest, suites=results, seconds=time.monotonic() - start, tokens=tokens)


def _measure_texts(
    model: Any, tokenizer: Any, suite: Suite, progress: Progress, batch_tokens: int | None
) -> tuple[list[ItemResult], int]:
    score = TEXT_SCORERS[suite.scorer]
    answers = generate(
        model,
        tokenizer,
        [item.messages for item in suite.items],
        max_new_tokens=suite.max_new_tokens,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    results = [
        _unscored(item, answer.problem)
        if answer.problem
        else ItemResult(id=item.id, answer=answer.text, correct=score(answer.text, item.terms, item.distractors or ()))
        for item, answer in zip(suite.items, answers, strict=True)
    ]
    return results, sum(answer.tokens for answer in answers)


def _measure_choices(
    model: Any, tokenizer: Any, suite: Suite, progress: Progress, batch_tokens: int | None
) -> tuple[list[ItemResult], int]:
    return _measure_likelihoods(
        model, tokenizer, suite, [item.choices or () for item in suite.items], _pick, progress, batch_tokens
    )


def _measure_preferences(
    model: Any, tokenizer: Any, suite: Suite, progress: Progress, batch_tokens: int | None
) -> tuple[list[ItemResult], int]:
    replies = [(item.chosen or "", item.rejected or "") for item in suite.items]
    return _measure_likelihoods(model, tokenizer, suite, replies, _prefer, progress, batch_tokens)


def _measure_likelihoods(
    model: Any,
    tokenizer: Any,
    suite: Suite,
    replies: Sequence[tuple[str, ...]],
    judge: Callable[[Item, Sequence[Likelihood]], ItemResult],
    progress: Progress,
    batch_tokens: int | None,
) -> tuple[list[ItemResult], int]:
    pairs = [(item.messages, text) for item, texts in zip(suite.items, replies, strict=True) for text in texts]
    found = completion_logps(model, tokenizer, pairs, batch_tokens=batch_tokens, progress=progress)
    rows = iter(found)
    results = []
    for item, texts in zip(suite.items, replies, strict=True):
        own = [next(rows) for _ in texts]
        problem = next((row.problem for row in own if row.problem), "")
        results.append(_unscored(item, problem) if problem else judge(item, own))
    return results, sum(row.tokens for row in found)


def _pick(item: Item, rows: Sequence[Likelihood]) -> ItemResult:
    picked = choice([row.logp for row in rows], [row.tokens for row in rows])
    return ItemResult(id=item.id, answer=(item.choices or ())[picked], correct=picked == item.answer)


def _prefer(item: Item, rows: Sequence[Likelihood]) -> ItemResult:
    chosen, rejected = rows
    correct = preference(chosen.logp, rejected.logp)
    text = item.chosen if correct else item.rejected
    note = f"log-likelihood {chosen.logp:.2f} of the chosen reply, {rejected.logp:.2f} of the rejected one"
    return ItemResult(id=item.id, answer=text or "", correct=correct, note=note)


def _unscored(item: Item, problem: str) -> ItemResult:
    return ItemResult(id=item.id, answer="", correct=None, note=problem)


_MEASURES = {"choice": _measure_choices, "preference": _measure_preferences}
