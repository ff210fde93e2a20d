"""The gate: may this candidate take production's place? A pure function of two reports and a policy.

Input      both reports are of the declared, different stacks; every named suite is in both with the same version,
           digest and items, fully scored; every suite in a report is named
New        better: the lower end of the paired difference is above `min_gain`. Without a new suite, the increment's own
           corrections stand in; without those either, nothing shows a gain and the candidate is blocked
Old        not worse: the lower end is at or above -margin, on enough items that a loss of the margin would show. At
           least one old suite is needed. A candidate that is one adapter in the place of several may be asked for this
           alone (`gain_needed=False`)
Accepted   corrections of earlier increments: at most `max_correction_losses` of them right before and wrong now
Flips      over all old suites at most `max_negative_flips` of the items right before and wrong now

The one design fact: every rule can only fail more when the candidate gets one more item wrong, and anything not
measured fails. There is no default that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from incremental_llm.chat import json_digest
from incremental_llm.errors import InputError
from incremental_llm.evaluation.intervals import (
    PairedDifference,
    minimum_detectable_effect,
    paired_bootstrap,
)
from incremental_llm.evaluation.results import EvaluationReport, SuiteResult
from incremental_llm.gate.decision import Check, Decision, Kind
from incremental_llm.gate.feasible import items_needed
from incremental_llm.gate.policy import GatePolicy

SHOWN = 10  # ids of items that decided, in a check and in a decision
_TINY = 1e-9  # shares are sums of floats: a bound met exactly is met

Rule = Callable[[str, SuiteResult, PairedDifference, GatePolicy], tuple[bool | None, str, float | None]]


def decide(
    *,
    candidate: EvaluationReport,
    production: EvaluationReport,
    candidate_stack: str,
    production_stack: str,
    policy: GatePolicy,
    new_suites: Sequence[str],
    old_suites: Sequence[str],
    own_corrections: str | None = None,
    corrections: Sequence[str] = (),
    superseded_suites: Sequence[str] = (),
    unguarded_suites: Sequence[str] = (),
    gain_needed: bool = True,
) -> Decision:
    """Decide on the stack with digest `candidate_stack` against the one with digest `production_stack`.

    `own_corrections` is the suite of this increment's corrections, `corrections` are those of earlier increments.
    `superseded_suites` (a policy change ended their truth) may also stand in `old_suites` or `corrections`, where they
    are then no longer guarded; like `unguarded_suites` they are reported only. `gain_needed` is False for a candidate
    that takes the place of several adapters and has nothing new to show.

    Raises:
        InputError: one suite named in two roles that contradict each other.
    """
    roles = suites_by_role(
        new_suites=new_suites,
        old_suites=old_suites,
        own_corrections=own_corrections,
        corrections=corrections,
        superseded_suites=superseded_suites,
        unguarded_suites=unguarded_suites,
    )
    old, own, accepted = roles["old_suites"], roles["own_corrections"], roles["corrections"]
    unguarded = (*roles["superseded_suites"], *unguarded_suites)
    named = (*new_suites, *old, *accepted, *own, *unguarded)
    shows_gain = bool(new_suites or own) or not gain_needed
    checks = _input_checks(candidate, production, candidate_stack, production_stack, named, shows_gain, old)
    rules: list[tuple[Kind, Sequence[str], Rule]] = [
        ("new", new_suites, _better),
        ("unguarded" if new_suites else "new", own, _reported if new_suites else _own_better),
        ("old", old, _not_worse),
        ("corrections", accepted, _kept),
        ("unguarded", unguarded, _reported),
    ]
    for kind, names, rule in rules:
        checks += [_compare(name, kind, rule, candidate, production, policy) for name in names]
    flipped, flips = _flips(old, candidate, production, policy)
    checks += flips
    failed = tuple(check.reason for check in checks if check.passed is False)
    return Decision(
        passed=not failed,
        stack_digest=candidate_stack,
        production_digest=production_stack,
        checks=tuple(checks),
        reasons=failed or tuple(check.reason for check in checks if check.kind != "input"),
        negative_flips=flipped[:SHOWN],
        policy_digest=json_digest(policy.model_dump(mode="json")),
    )


def suites_by_role(
    *,
    new_suites: Sequence[str],
    old_suites: Sequence[str],
    own_corrections: str | None = None,
    corrections: Sequence[str] = (),
    superseded_suites: Sequence[str] = (),
    unguarded_suites: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The suites of each argument of `decide`, old ones and corrections without the superseded.

    Raises:
        InputError: one suite named in two roles that contradict each other.
    """
    superseded = tuple(dict.fromkeys(superseded_suites))
    roles = {
        "new_suites": tuple(new_suites),
        "old_suites": tuple(name for name in old_suites if name not in superseded),
        "own_corrections": () if own_corrections is None else (own_corrections,),
        "corrections": tuple(name for name in corrections if name not in superseded),
        "superseded_suites": superseded,
        "unguarded_suites": tuple(unguarded_suites),
    }
    for role, names in roles.items():
        if len(set(names)) != len(names):
            raise InputError(f"expected each suite once in {role}, found {', '.join(names)}. Remove the repeated name.")
    for (first, ours), (second, theirs) in combinations(roles.items(), 2):
        if both := sorted(set(ours) & set(theirs)):
            raise InputError(f"suite {both[0]!r} is in {first} and in {second}. Give it one role.")
    return roles


def _input_checks(
    candidate: EvaluationReport,
    production: EvaluationReport,
    candidate_stack: str,
    production_stack: str,
    named: Sequence[str],
    shows_gain: bool,
    old: Sequence[str],
) -> list[Check]:
    """What must hold before any number means something."""
    unnamed = sorted((candidate.suites.keys() | production.suites.keys()) - set(named))
    expectations = (
        (
            "candidate",
            candidate.stack_digest == candidate_stack,
            f"The candidate's report is of stack {candidate.stack_digest[:12]}, not of {candidate_stack[:12]}: "
            "the candidate was not measured.",
        ),
        (
            "production",
            production.stack_digest == production_stack,
            f"Production's report is of stack {production.stack_digest[:12]}, not of {production_stack[:12]}: "
            "production was not measured.",
        ),
        (
            "difference",
            candidate_stack != production_stack,
            f"The candidate is the production stack {production_stack[:12]} itself: there is nothing to promote.",
        ),
        (
            "gain",
            shows_gain,
            "No new suite and no corrections of this increment were named: a gain was not measured.",
        ),
        ("old suites", bool(old), "No old suite was named: that nothing was lost was not measured."),
        (
            "names",
            not unnamed,
            f"The reports hold suites that were given no role ({', '.join(unnamed)}): name each as new, old, "
            "corrections, superseded or unguarded.",
        ),
    )
    return [
        Check(name=name, kind="input", passed=holds, reason="As declared." if holds else reason)
        for name, holds, reason in expectations
    ]


def _compare(
    name: str,
    kind: Kind,
    rule: Rule,
    candidate: EvaluationReport,
    production: EvaluationReport,
    policy: GatePolicy,
) -> Check:
    """Apply a rule to a suite, after making sure that it was measured on both sides."""
    before, after = production.suites.get(name), candidate.suites.get(name)
    if problem := _unmeasured(name, before, after):
        return Check(name=name, kind=kind, passed=False, reason=f"{name} was not measured: {problem}.")
    assert before is not None and after is not None  # what _unmeasured has made sure of
    paired = paired_bootstrap(
        before.outcomes, after.outcomes, confidence=policy.confidence, resamples=policy.resamples, seed=policy.seed
    )
    passed, reason, bound = rule(name, before, paired, policy)
    return Check(
        name=name,
        kind=kind,
        passed=passed,
        reason=reason,
        before=before.score,
        after=after.score,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        n=paired.n,
        bound=bound,
        detectable=_detectable(paired, policy),
        lost=paired.lost[:SHOWN],
        lost_total=len(paired.lost),
    )


def _unmeasured(name: str, before: SuiteResult | None, after: SuiteResult | None) -> str:
    """Why a suite cannot be compared; empty when it can."""
    for side, result in (("production", before), ("the candidate", after)):
        if result is None:
            return f"{side}'s report lacks it"
        if result.suite != name:
            return f"{side}'s report holds suite {result.suite!r} under its name"
        if problems := result.problems():
            return f"{side}'s result contradicts its items ({problems[0]})"
        if result.unscored:
            note = next(item.note for item in result.items if item.correct is None)
            count = f"{result.unscored} of its {len(result.items)} items"
            return f"{count} have no outcome for {side} ({note or 'no reason given'})"
        if not result.n:
            return f"it has no items for {side}"
    assert before is not None and after is not None  # the loop has returned otherwise
    if (before.version, before.digest) != (after.version, after.digest):
        return (
            f"production was measured on version {before.version} ({before.digest[:12]}), the candidate on version "
            f"{after.version} ({after.digest[:12]})"
        )
    if before.outcomes.keys() != after.outcomes.keys():
        return "the two reports hold different items"
    return ""


def _better(name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy) -> tuple[bool, str, float]:
    if paired.n < policy.min_items:
        return False, _too_few(name, paired.n, policy.min_items), policy.min_gain
    return _gain(name, before, paired, policy)


def _own_better(
    name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy
) -> tuple[bool, str, float]:
    if paired.n < policy.min_corrections:
        return False, _too_few(name, paired.n, policy.min_corrections), policy.min_gain
    return _gain(name, before, paired, policy)


def _gain(name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy) -> tuple[bool, str, float]:
    words = _change(name, before, paired)
    if paired.low > policy.min_gain + _TINY:
        return True, f"{words}: better.", policy.min_gain
    verdict = "worse" if paired.high < 0 else "not shown to be better"
    wanted = f"the lower end has to be above {_points(policy.min_gain)}"
    return False, f"{words}: {verdict}; {wanted}. {_resolution(paired, policy)}", policy.min_gain


def _not_worse(name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy) -> tuple[bool, str, float]:
    margin = policy.margin_of(name)
    needed = items_needed(name, policy)
    if paired.n < needed:
        return False, _too_few(name, paired.n, needed) + f" A margin of {_points(margin)} needs them.", -margin
    words = _change(name, before, paired)
    if paired.low >= -margin - _TINY:
        return True, f"{words}: not worse than the margin of {_points(margin)}.", -margin
    verdict = "worse" if paired.high < 0 else "not shown to be no worse"
    wanted = f"the lower end has to be at least {_points(-margin)}"
    return False, f"{words}: {verdict}; {wanted}. {_resolution(paired, policy)}", -margin


def _kept(name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy) -> tuple[bool, str, float]:
    share, allowed = len(paired.lost) / paired.n, policy.max_correction_losses
    words = f"{name}: {len(paired.lost)} of {paired.n} corrections accepted earlier were lost ({_points(share)})"
    if share <= allowed + _TINY:
        return True, f"{words}, at most {_points(allowed)} may be.", allowed
    return False, f"{words}, at most {_points(allowed)} may be: {_some(paired.lost)}.", allowed


def _reported(name: str, before: SuiteResult, paired: PairedDifference, policy: GatePolicy) -> tuple[None, str, None]:
    return None, f"{_change(name, before, paired)}: reported, not guarded.", None


def _flips(
    old: Sequence[str], candidate: EvaluationReport, production: EvaluationReport, policy: GatePolicy
) -> tuple[tuple[str, ...], list[Check]]:
    """Negative flips over the old suites that both sides measured; the others have failed their own check."""
    lost: list[str] = []
    n = 0
    for name in old:
        before, after = production.suites.get(name), candidate.suites.get(name)
        if before is None or after is None or _unmeasured(name, before, after):
            continue
        n += before.n
        outcomes = after.outcomes
        lost += [f"{name}/{item}" for item, right in before.outcomes.items() if right and not outcomes[item]]
    if not n:
        return (), []
    share, allowed = len(lost) / n, policy.max_negative_flips
    holds = share <= allowed + _TINY
    words = f"{len(lost)} of {n} items of old suites were right before and are wrong now ({_points(share)})"
    reason = f"{words}, at most {_points(allowed)} may be" + ("." if holds else f": {_some(lost)}.")
    check = Check(
        name="negative flips",
        kind="flips",
        passed=holds,
        reason=reason,
        after=share,
        n=n,
        bound=allowed,
        lost=tuple(lost[:SHOWN]),
        lost_total=len(lost),
    )
    return tuple(lost), [check]


def _change(name: str, before: SuiteResult, paired: PairedDifference) -> str:
    old = sum(before.outcomes.values()) / before.n
    interval = f"interval {100 * paired.low:+.1f} to {100 * paired.high:+.1f}"
    scores = f"{100 * old:.1f} -> {100 * (old + paired.difference):.1f}"
    return f"{name}: {scores} ({100 * paired.difference:+.1f}, {interval}, {paired.n} items)"


def _resolution(paired: PairedDifference, policy: GatePolicy) -> str:
    lost = f" Lost: {_some(paired.lost)}." if paired.lost else ""
    return f"{paired.n} items show a difference of {_points(_detectable(paired, policy))} or more.{lost}"


def _detectable(paired: PairedDifference, policy: GatePolicy) -> float:
    return minimum_detectable_effect(paired.n, paired.discordant, confidence=policy.confidence)


def _too_few(name: str, found: int, needed: int) -> str:
    return f"{name} has {found} items, {needed} are needed: too few to be measured."


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
