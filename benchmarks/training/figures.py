"""From turns to figures."""

from __future__ import annotations

from collections.abc import Sequence

from training.measure import Turns, ratio

NIGHT = 220  # steps of a night of the CPU recipe, over which loading and merging are spread


def spread(name: str, rival: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """The median of the ratios under `name`, and their range under `name`_low and `name`_high."""
    found = ratio(rival, ours)
    return {name: found.median, f"{name}_low": found.low, f"{name}_high": found.high}


def after_merging(turns: Turns, clock: str) -> list[float]:
    """Seconds a step of each turn, with the share of a night's steps in loading the base and merging the stack."""
    seconds: list[float] = getattr(turns, clock)
    return [one + turns.setup["load"] / NIGHT for one in seconds]


def loss_gap(one: Turns, other: Turns) -> float:
    """The largest difference of two sides' losses, step by step."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
