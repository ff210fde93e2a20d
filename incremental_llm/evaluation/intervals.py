"""How sure a measured share, or a measured difference, is. numpy only.

    wilson(30, 40)                       the interval of a share, for a cell of the table
    paired_bootstrap(before, after)      the interval of a difference on the same items, for the gate
    minimum_detectable_effect(40, 0.1)   the smallest difference so many items can show

The one design fact: before and after answer the same items, so the difference is taken item by item; what the items
have in common (some are hard) cancels out, and the interval is several times narrower than that of two shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from incremental_llm.errors import SuiteError
from incremental_llm.proportions import two_sided_z
from incremental_llm.proportions import wilson as wilson  # the interval of a cell, beside those of differences

_CHUNK = 4_000_000  # indices drawn at once; 32 MB


@dataclass(frozen=True)
class PairedDifference:
    """after - before over `n` common items, with its interval; all in shares of 1, positive is better.

    `lost` and `gained` are the ids of the items that became worse and better, in the order of the ids.
    """

    difference: float
    low: float
    high: float
    n: int
    lost: tuple[str, ...]
    gained: tuple[str, ...]

    @property
    def discordant(self) -> float:
        """Share of items whose outcome changed, 0 to 1."""
        return (len(self.lost) + len(self.gained)) / self.n


def paired_bootstrap(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of mean(after - before) over items drawn with replacement (Efron & Tibshirani 1993, ch. 13).

    Deterministic: items are ordered by id and the draws depend on `seed`, `resamples` and the number of items alone.
    So a worse outcome of one item never raises `low`. A bootstrap sees only changes that happened: with no change at
    all its width is 0, which is why the gate asks for `items_to_resolve` besides.

    Raises:
        SuiteError: the two sides have no items, different items, or a value that is not finite.
    """
    ids = _common_ids(before, after)
    outcomes = np.array([[before[i], after[i]] for i in ids], dtype=np.float64)
    if not np.isfinite(outcomes).all():
        raise SuiteError("expected a finite outcome for every item, found NaN or infinity. Measure the suite again.")
    differences = outcomes[:, 1] - outcomes[:, 0]
    means = _resampled_means(differences, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return PairedDifference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        n=len(ids),
        lost=tuple(i for i, d in zip(ids, differences, strict=True) if d < 0),
        gained=tuple(i for i, d in zip(ids, differences, strict=True) if d > 0),
    )


def minimum_detectable_effect(n: int, discordant: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference of two paired shares that `n` items show with probability `power`.

    (z_(1-a/2) + z_power) sqrt(d/n), d the share of items whose outcome changes (Connor 1987, leading term); d is
    smoothed to (dn + 1)/(n + 2), since "none of n changed" does not mean "none ever does". n=200, d=0.1: 0.064.
    """
    if n < 1 or not 0 <= discordant <= 1:
        raise ValueError(f"expected n >= 1 and 0 <= discordant <= 1, found n={n}, discordant={discordant}")
    smoothed = (discordant * n + 1) / (n + 2)
    return min(1.0, (two_sided_z(confidence) + NormalDist().inv_cdf(power)) * math.sqrt(smoothed / n))


def items_to_resolve(margin: float, confidence: float = 0.95) -> int:
    """The fewest items on which a loss of `margin` of them would be noticed with probability `confidence`.

    ceil(log(1 - confidence) / log(1 - margin)): with fewer, a model that loses every margin-th item may well show no
    loss at all (the "rule of three"). Margin 0.05: 59 items; 0.1: 29.
    """
    if not 0 < margin < 1:
        raise ValueError(f"expected a margin between 0 and 1, found {margin}")
    return math.ceil(math.log(1 - confidence) / math.log(1 - margin))


def _common_ids(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        raise SuiteError(
            f"expected the same items on both sides, found {len(only)} on one side only ({', '.join(only[:3])}). "
            "Measure both models on the same version of the suite."
        )
    if not before:
        raise SuiteError("expected items to compare, found none. Measure both models on the suite.")
    return sorted(before)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    chunks = [
        values[generator.integers(0, len(values), size=(min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(chunks)
