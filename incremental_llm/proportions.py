"""How sure a measured share is. The standard library alone, so that every stage can say it."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share right/n, both ends within 0 and 1 (Wilson 1927).

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). For 8 of 10 at 95 %: 0.490 to 0.943.
    It keeps a width at shares of 0 and 1, where a bootstrap of the items has none.

    Raises:
        ValueError: no items, or more right than items.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"expected 0 <= right <= n with n > 0, found right={right}, n={n}")
    z, p = two_sided_z(confidence), right / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return 0.0 if right == 0 else low, 1.0 if right == n else high  # exact there; rounding would miss by an ulp


def two_sided_z(confidence: float) -> float:
    """The standard normal quantile that leaves half of 1 - confidence on each side; ValueError outside 0 to 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
