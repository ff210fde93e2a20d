"""Measure a stack on suites, item by item, and say how sure the result is.

    from incremental_llm.evaluation import load_suites, matrix_of, flips
    from incremental_llm.evaluation.evaluate import evaluate        # needs torch, like the model it measures

    suites = load_suites(Path("eval_suites"), ["general", "shop_night1"])
    report = evaluate(model, tokenizer, stack, suites, progress=print)
    report.suites["general"].score, report.suites["general"].low, report.suites["general"].high

    suites.py     load and check versioned items           scorers.py    right or wrong, from the text
    generate.py   greedy answers, log-likelihoods          evaluate.py   all suites, one report
    results.py    every item's outcome                     intervals.py  how sure a share or a difference is
    metrics.py    the matrix: average, BWT, FWT, forgetting, flips

The one design fact: what was not measured has no value. It is neither 0 nor skipped; it stays in the report with its
reason, raises where a number is computed from it, and blocks the gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from incremental_llm.evaluation.intervals import (
    PairedDifference,
    items_to_resolve,
    minimum_detectable_effect,
    paired_bootstrap,
    wilson,
)
from incremental_llm.evaluation.metrics import Flips, Matrix, Metrics, flips, matrix_of
from incremental_llm.evaluation.results import EvaluationReport, ItemResult, SuiteResult
from incremental_llm.evaluation.suites import (
    Item,
    Suite,
    all_passages,
    all_questions,
    load_suite,
    load_suites,
    suite_texts,
)

if TYPE_CHECKING:
    from incremental_llm.evaluation.generate import completion_logps, greedy_answers

__all__ = [
    "EvaluationReport",
    "Flips",
    "Item",
    "ItemResult",
    "Matrix",
    "Metrics",
    "PairedDifference",
    "Suite",
    "SuiteResult",
    "all_passages",
    "all_questions",
    "completion_logps",
    "flips",
    "greedy_answers",
    "items_to_resolve",
    "load_suite",
    "load_suites",
    "matrix_of",
    "minimum_detectable_effect",
    "paired_bootstrap",
    "suite_texts",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name in {"completion_logps", "greedy_answers"}:  # these import torch
        from incremental_llm.evaluation import generate

        return getattr(generate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
