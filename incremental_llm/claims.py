"""What a candidate has to show, decided before it is trained: what must be better, and what must not be worse.

    claim = claim_of(todo, corrections, kept, config, suites, superseded)
    claim.corrections        corrections that are measured beside the suites
    claim.better             suites that must get better; production needs room there

An increment must be better at something. So must a retraining, where its feedback gives it anything to be better at.
Where it does not, as in a consolidation, one adapter in the place of several is the gain, and nothing at all may be
worse for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from incremental_llm.config import CORRECTION_SUITES, RunConfig
from incremental_llm.dataset import AcceptedCorrection
from incremental_llm.evaluation import Suite
from incremental_llm.evaluation.corrections import correction_suite
from incremental_llm.gate.feasible import check_gain, check_suites
from incremental_llm.pending import Pending

KEPT, LEARNED = CORRECTION_SUITES


@dataclass(frozen=True)
class Claim:
    """Suites by what the gate does with them.

    `new` must get better, `old` not worse. `corrections` are those that are tested again, as suites: the ones accepted
    earlier, and the run's own ones where no new suite proves the gain. `gain` is False where nothing has to be better.
    """

    new: tuple[str, ...]
    old: tuple[str, ...]
    corrections: tuple[Suite, ...]
    gain: bool
    note: str = ""

    @property
    def better(self) -> tuple[str, ...]:
        """Names of the suites that must get better; the run's own corrections where the recipe names none."""
        return self.new or tuple(suite.name for suite in self.corrections if suite.name == LEARNED)


def claim_of(
    todo: Pending,
    corrections: Sequence[AcceptedCorrection],
    kept: Sequence[AcceptedCorrection],
    config: RunConfig,
    suites: Sequence[Suite],
    superseded: Collection[str],
) -> Claim:
    """The claim of the run that is about to be made, with `corrections` of its own.

    `kept` are the earlier ones that still hold.

    Raises:
        NothingToTrainError: a gain is needed, and neither a suite nor enough corrections could show it.
        InputError: a new suite that is to be guarded like an old one has too few items for its margin.
    """
    roles, policy = config.suites, config.gate
    own = None if roles.new else correction_suite(LEARNED, fresh(corrections, kept))
    testable = len(own.items) if own else 0
    earlier = correction_suite(KEPT, kept)
    replaced = len(todo.head.stack.adapters) - len(todo.below.adapters)
    if replaced > 1 and not (todo.has_new and (roles.new or testable >= policy.min_corrections)):
        guarded = (*roles.old, *roles.new)
        sizes = {suite.name: len(suite.items) for suite in suites}
        check_suites(sizes, policy, (), [name for name in guarded if name not in superseded])
        note = f"one adapter in the place of {replaced}: nothing has to be better, and no suite may be worse"
        return Claim((), guarded, tuple(filter(None, [earlier])), gain=False, note=note)
    check_gain(testable, policy, roles.new)
    return Claim(roles.new, roles.old, tuple(filter(None, [earlier, own])), gain=True)


def fresh(
    corrections: Sequence[AcceptedCorrection], kept: Sequence[AcceptedCorrection]
) -> tuple[AcceptedCorrection, ...]:
    """The corrections that no earlier increment has taught: of an increment all, of a retraining the new ones."""
    known = {correction.event_id for correction in kept}
    return tuple(correction for correction in corrections if correction.event_id not in known)
