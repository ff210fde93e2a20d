"""What the gate will ask for whatever is trained, checked before anything is.

A candidate that could never pass would take a night, and count as one of the two tries that its feedback has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from incremental_llm.errors import InputError, NothingToTrainError, SuiteError
from incremental_llm.evaluation.intervals import items_to_resolve, paired_bootstrap
from incremental_llm.evaluation.results import EvaluationReport
from incremental_llm.gate.policy import GatePolicy


def check_suites(sizes: Mapping[str, int], policy: GatePolicy, new_suites: Sequence[str], old: Sequence[str]) -> None:
    """Compare the suites' numbers of items with what the policy needs; `old` without the superseded.

    Raises:
        InputError: no old suite, or suites with too few items.
    """
    if not old:
        raise InputError(
            "suites.old: expected a suite that must not get worse, found none whose truth still holds. Without one "
            "nothing could show that an update is not worse: name one."
        )
    needed = dict.fromkeys(new_suites, policy.min_items) | {name: items_needed(name, policy) for name in old}
    short = [
        f"{name} has {sizes[name]} items, {count} are needed" for name, count in needed.items() if sizes[name] < count
    ]
    if short:
        raise InputError(
            f"suites: {'; '.join(short)}: the gate could never pass. Add items, or change gate.min_items or the margin."
        )


def check_gain(own_corrections: int, policy: GatePolicy, new_suites: Sequence[str]) -> None:
    """Whether a gain could be shown: by a new suite, or by enough corrections of the increment's own.

    Raises:
        NothingToTrainError: neither; the feedback stays and waits for more.
    """
    if not new_suites and own_corrections < policy.min_corrections:
        raise NothingToTrainError(
            f"{own_corrections} new corrections that can be tested, and no suite in suites.new: the gate needs "
            f"{policy.min_corrections} (gate.min_corrections) to see a gain. Nothing is lost: the feedback waits for "
            "more. Or name a suite of what it teaches in suites.new."
        )


def check_measured(production: EvaluationReport, what: str) -> None:
    """Whether production, `what`, has a score on every suite: the gate would hold a missing one against the candidate.

    Raises:
        SuiteError: items without an outcome.
    """
    for name, result in production.suites.items():
        if result.unscored:
            note = next(item.note for item in result.items if item.correct is None)
            raise SuiteError(
                f"{what} cannot be measured on {name}: {result.unscored} of {len(result.items)} items have no outcome "
                f"({note}). Correct the suite; nothing was trained."
            )


def check_headroom(production: EvaluationReport, policy: GatePolicy, new: Sequence[str], what: str) -> None:
    """Whether a candidate that is right on every item of a `new` suite would be shown to be better than production.

    Raises:
        NothingToTrainError: production, `what`, is as good already; the feedback stays and waits.
    """
    for name in new:
        before = production.suites[name].outcomes
        best = paired_bootstrap(
            before,
            dict.fromkeys(before, 1.0),
            confidence=policy.confidence,
            resamples=policy.resamples,
            seed=policy.seed,
        )
        if best.low <= policy.min_gain:
            right = best.n - len(best.gained)
            raise NothingToTrainError(
                f"{what} is right on {right} of {best.n} items of {name} already: no candidate could be shown to be "
                "better by more than gate.min_gain. Nothing was trained and nothing is lost: the feedback waits for "
                "more. Or name a suite of what it teaches in suites.new."
            )


def items_needed(name: str, policy: GatePolicy) -> int:
    """The fewest items of an old suite: `min_items`, and as many as a loss of its margin needs to show."""
    return max(policy.min_items, items_to_resolve(policy.margin_of(name), policy.confidence))
