"""The matrix of scores over suites and versions, and what continual learning reads from it. No torch.

Versions are columns: 0 is the base model, j the model after increment j, T the last. Each suite belongs to the
increment that introduced it; suites of general ability belong to none (0) and enter no metric below, their own
difference to the base says more. a_ij is the score on suite i after increment j, t_i the increment of suite i, and
b_i = a_i0.

The formulas are those of one suite an increment (Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018). With several, each
mean runs over suites.

The one design fact: what was not measured is never 0. A missing cell is an error to whoever reads it, and a metric that
needs it, or is undefined, is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from incremental_llm.errors import SuiteError
from incremental_llm.evaluation.results import EvaluationReport, SuiteResult


@dataclass(frozen=True)
class Metrics:
    """All in shares of 1. None where a metric is undefined, as BWT is after a single increment."""

    average: float | None
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    plasticity: float | None


@dataclass(frozen=True)
class Matrix:
    """Scores by (suite, version).

    `versions` begins with the base. `introduced` gives each suite's increment, 0 for general ability. Suites in
    `superseded`, whose truth a policy change ended, stay in the table and enter no metric.

        >>> matrix = Matrix(("a", "b"), ("base", "v1", "v2"), {
        ...     ("a", "base"): 0.1, ("a", "v1"): 0.9, ("a", "v2"): 0.7,
        ...     ("b", "base"): 0.2, ("b", "v1"): 0.3, ("b", "v2"): 0.8}, {"a": 1, "b": 2})
        >>> round(matrix.average(), 2), round(matrix.bwt(), 2), round(matrix.fwt(), 2), round(matrix.forgetting(), 2)
        (0.75, -0.2, 0.1, 0.2)
    """

    suites: tuple[str, ...]
    versions: tuple[str, ...]
    scores: Mapping[tuple[str, str], float | None]
    introduced: Mapping[str, int]
    superseded: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.versions:
            raise SuiteError("expected at least the base among the versions, found none.")
        for suite in self.suites:
            if not 0 <= self.introduced.get(suite, -1) <= self.last:
                raise SuiteError(
                    f"expected suite {suite!r} to be introduced between 0 (general) and {self.last}, found "
                    f"{self.introduced.get(suite)}. Say which increment it belongs to."
                )

    @property
    def last(self) -> int:
        """T, the number of increments."""
        return len(self.versions) - 1

    def cell(self, suite: str, version: int) -> float:
        """a_ij, 0 to 1.

        Raises:
            SuiteError: the cell was not measured.
        """
        value = self.scores.get((suite, self.versions[version]))
        if value is None or not math.isfinite(value):
            raise SuiteError(
                f"expected a score of suite {suite!r} at {self.versions[version]}, found none. "
                "Measure every suite at every version; a missing cell has no value."
            )
        return value

    def average(self) -> float | None:
        """mean_i a_iT. In the example (0.7 + 0.8) / 2 = 0.75."""
        return _mean([self.cell(suite, self.last) for suite in self._of_increments()])

    def bwt(self) -> float | None:
        """Backward transfer: mean over t_i < T of a_iT - a_i,t_i. In the example 0.7 - 0.9 = -0.2; negative is bad."""
        return _mean([self.cell(suite, self.last) - self.cell(suite, t) for suite, t in self._earlier()])

    def fwt(self) -> float | None:
        """Forward transfer: mean over t_i >= 2 of a_i,t_i-1 - b_i. In the example 0.3 - 0.2 = 0.1."""
        later = [(suite, self.introduced[suite]) for suite in self._of_increments() if self.introduced[suite] >= 2]
        return _mean([self.cell(suite, t - 1) - self.cell(suite, 0) for suite, t in later])

    def forgetting(self) -> float | None:
        """mean over t_i < T of max_{1<=l<T} a_il - a_iT. In the example 0.9 - 0.7 = 0.2; positive is bad.

        Versions before t_i count where they were measured: many a suite is written with its increment.
        """
        return _mean([self._best(suite, t) - self.cell(suite, self.last) for suite, t in self._earlier()])

    def plasticity(self) -> float | None:
        """mean_i a_i,t_i: how well each increment learnt its own suites. In the example (0.9 + 0.8) / 2 = 0.85."""
        return _mean([self.cell(suite, self.introduced[suite]) for suite in self._of_increments()])

    def metrics(self) -> Metrics:
        """All of them; None also where a cell that a metric needs was not measured."""
        formulas = (self.average, self.bwt, self.fwt, self.forgetting, self.plasticity)
        return Metrics(*map(_where_measured, formulas))

    def _best(self, suite: str, since: int) -> float:
        """The best score before the last version; every version from `since` on has to be measured."""
        known = [v for v in range(1, self.last) if v >= since or self.scores.get((suite, self.versions[v])) is not None]
        return max(self.cell(suite, version) for version in known)

    def _of_increments(self) -> list[str]:
        return [suite for suite in self.suites if self.introduced[suite] > 0 and suite not in self.superseded]

    def _earlier(self) -> list[tuple[str, int]]:
        return [
            (suite, self.introduced[suite]) for suite in self._of_increments() if self.introduced[suite] < self.last
        ]


@dataclass(frozen=True)
class Flips:
    """Items whose outcome changed between two reports, as "suite/item", over `n` items."""

    negative: tuple[str, ...]
    positive: tuple[str, ...]
    n: int

    @property
    def negative_share(self) -> float:
        """Share of items right before and wrong now, 0 to 1."""
        return len(self.negative) / self.n

    @property
    def stability(self) -> float:
        """Share of items whose outcome did not change, 0 to 1."""
        return 1 - (len(self.negative) + len(self.positive)) / self.n


def flips(before: EvaluationReport, after: EvaluationReport, suites: Sequence[str]) -> Flips:
    """Compare two reports item by item over the named suites.

    With one suite of four items, right right wrong wrong before and right wrong right wrong after: 1 of 4 negative,
    1 of 4 positive, stability 0.5.

    Raises:
        SuiteError: no suites, a suite that is missing or not the same on both sides, an item without an outcome.
    """
    negative: list[str] = []
    positive: list[str] = []
    n = 0
    for suite in suites:
        old, new = measured(before, suite), measured(after, suite)
        if not _same_items(old, new) or old.outcomes.keys() != new.outcomes.keys():
            raise SuiteError(f"suite {suite!r} is not the same in both reports. Measure both on the same version.")
        n += new.n
        for item, outcome in new.outcomes.items():
            if outcome != old.outcomes[item]:
                (negative if outcome < old.outcomes[item] else positive).append(f"{suite}/{item}")
    if not n:
        raise SuiteError("expected items to compare, found none. Name at least one suite.")
    return Flips(tuple(negative), tuple(positive), n)


def matrix_of(
    reports: Mapping[str, EvaluationReport], introduced: Mapping[str, int], superseded: Collection[str] = ()
) -> Matrix:
    """The matrix of reports by version, in the order given, the base first; suites as in `introduced`.

    A cell stays empty where a report lacks the suite, has items without an outcome, or is of another version of its
    items than the last report: such scores cannot be compared.
    """
    scores: dict[tuple[str, str], float | None] = {}
    for suite in introduced:
        found = {version: report.suites.get(suite) for version, report in reports.items()}
        last = next((result for result in reversed(found.values()) if result is not None), None)
        for version, result in found.items():
            if (
                result is not None
                and last is not None
                and result.n
                and not result.unscored
                and _same_items(result, last)
            ):
                scores[suite, version] = result.score
    return Matrix(tuple(introduced), tuple(reports), scores, dict(introduced), frozenset(superseded))


def _same_items(one: SuiteResult, other: SuiteResult) -> bool:
    return (one.version, one.digest) == (other.version, other.digest)


def measured(report: EvaluationReport, suite: str) -> SuiteResult:
    """A suite's result, complete.

    Raises:
        SuiteError: the report lacks it, or has items without an outcome.
    """
    result = report.suites.get(suite)
    if result is None:
        raise SuiteError(
            f"expected suite {suite!r} in the report of {report.stack_digest[:12]}, found "
            f"{', '.join(report.suites) or 'none'}. Measure the stack on it."
        )
    if result.unscored or not result.n:
        raise SuiteError(
            f"expected every item of suite {suite!r} to be scored, found {result.unscored} of {len(result.items)} "
            "without an outcome. Measure the stack on it again."
        )
    return result


def _where_measured(formula: Callable[[], float | None]) -> float | None:
    try:
        return formula()
    except SuiteError:
        return None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
