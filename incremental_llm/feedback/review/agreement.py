"""How reviewers do: what they decided, how fast, how often others said the same, and what known items they caught."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from incremental_llm.feedback.review.items import Decision, Proposal, Verdict
from incremental_llm.feedback.review.queue import ReviewQueue
from incremental_llm.feedback.review.teaching import Same, agree, position
from incremental_llm.proportions import wilson


@dataclass(frozen=True)
class Share:
    """`right` of `n`, as a share of 1 with its Wilson interval at 95 %; None where n is 0."""

    right: int
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.right, self.n) if self.n else None

    @property
    def share(self) -> float | None:
        return self.right / self.n if self.n else None


@dataclass(frozen=True)
class ReviewerRow:
    """One reviewer. `agreed` counts pairs of decisions with another reviewer on one item, skips left out; `caught` the
    seeded items judged as they should be; `seconds` is the median from claim to decision."""

    reviewer: str
    decisions: int
    skipped: int
    agreed: Share
    caught: Share
    seconds: float


@dataclass(frozen=True)
class AgreementReport:
    """All reviewers, by name. `alpha` is Krippendorff's over all items that two or more judged; None for too few."""

    reviewers: tuple[ReviewerRow, ...]
    alpha: float | None
    shared: int


def agreement(queue: ReviewQueue) -> AgreementReport:
    """The report on everything that was ever decided."""
    decisions = queue.decisions()
    proposals = queue.proposals({one.item for one in decisions})
    return report(decisions, proposals, queue.same)


def report(decisions: Sequence[Decision], proposals: Mapping[str, Proposal], same: Same) -> AgreementReport:
    """As `agreement`, from the decisions and what they are about."""
    by_item: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions:
        if one.verdict != "skip":
            by_item[one.item].append(one)
    units = [[one.verdict for one in judged] for judged in by_item.values()]
    rows = [
        _row(name, [one for one in decisions if one.reviewer == name], by_item, proposals, same)
        for name in sorted({one.reviewer for one in decisions})
    ]
    return AgreementReport(tuple(rows), krippendorff_alpha(units), sum(len(unit) > 1 for unit in units))


def caught(verdict: Verdict, expected: Verdict) -> bool:
    """Whether a seeded item was judged as it should be; a bad reply may be rejected or put right."""
    return (verdict == "accept") == (expected == "accept")


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Agreement beyond chance of any number of judges, for nominal values: 1 is perfect, 0 is chance.

    `units` holds the values that each item was given; one with fewer than two says nothing. 1 - (n - 1) D_o / D_e with
    D_o = Σ_u (m_u² - Σ_c n_uc²) / (m_u - 1) and D_e = n² - Σ_c n_c² (Krippendorff 2011). None where nothing was judged
    twice or everything had one value.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[str] = Counter()
    observed = 0.0
    for counts in paired:
        totals.update(counts)
        m = counts.total()
        observed += (m * m - sum(count * count for count in counts.values())) / (m - 1)
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    return 1 - (n - 1) * observed / expected if expected else None


def _row(
    reviewer: str,
    mine: Sequence[Decision],
    by_item: Mapping[str, Sequence[Decision]],
    proposals: Mapping[str, Proposal],
    same: Same,
) -> ReviewerRow:
    judged = [one for one in mine if one.verdict != "skip"]
    agreed: list[bool] = []
    for one in judged:
        about = proposals[one.item]
        others = (other for other in by_item[one.item] if other.reviewer != reviewer)
        agreed += [agree(position(about, one), position(about, other), same) for other in others]
    known = [(one.verdict, expected) for one in judged if (expected := proposals[one.item].expected) is not None]
    return ReviewerRow(
        reviewer=reviewer,
        decisions=len(judged),
        skipped=len(mine) - len(judged),
        agreed=Share(sum(agreed), len(agreed)),
        caught=Share(sum(caught(*pair) for pair in known), len(known)),
        seconds=statistics.median(one.seconds for one in mine),
    )
