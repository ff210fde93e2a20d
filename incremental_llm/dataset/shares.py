"""How much of a night's loss weight one person or one message may have, as pure functions of weights.

Weights are scaled down and nothing is dropped. Of an example that k people back, each holds a k-th.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", bound=Hashable)

ROUNDS = 20
_SLACK = 1e-9


def level(totals: Mapping[Group, float], free: float, cap: float) -> float:
    """The largest total that a group may keep so that none has more than `cap` of what is left; inf where none has.

    Water-filling: every total above the level L is cut to L, and L = cap * (free + the sum of min(total, L)), with
    `free` the weight that no group holds. With the m largest groups cut and R the rest, `free` included, this is L =
    cap * R / (1 - cap * m); m grows until no uncut group is above L. For 1 / cap groups or fewer, with nothing free,
    there is no such level but 0: callers ask for at least twice an equal share.

    >>> level({"a": 90.0, "b": 5.0, "c": 5.0}, 0.0, 0.5)
    10.0
    """
    ordered = sorted((total for total in totals.values() if total > 0), reverse=True)
    rest = free + math.fsum(ordered)
    if not ordered or ordered[0] <= cap * rest * (1 + _SLACK):
        return math.inf
    for cut, total in enumerate(ordered, 1):
        rest -= total
        if cap * cut >= 1:
            return 0.0
        found = cap * rest / (1 - cap * cut)
        if cut == len(ordered) or ordered[cut] <= found:
            return found
    return math.inf


def largest(weights: Sequence[float], holders: Sequence[Collection[Group]]) -> float:
    """The largest share that one holder has of all weight; 0 where there is none."""
    totals = _totals(weights, holders)
    whole = math.fsum(weights)
    return max(totals.values(), default=0.0) / whole if whole > 0 else 0.0


def bound(share: float, groups: int) -> float:
    """The share that is asked of so many groups: `share`, but never less than twice an equal one."""
    return min(1.0, max(share, 2 / groups)) if groups else 1.0


def capped(weights: Sequence[float], holders: Sequence[Collection[Group]], share: float) -> list[float]:
    """`weights` scaled down until no holder has more than `bound(share, holders)` of what is left.

    An example without holders is nobody's: it is never scaled, and counts in the whole. One pass is exact where each
    example has one holder; of several each has a factor, and the example their mean, so it takes a few passes.
    """
    return _settled(weights, lambda current: _once(current, holders, share))


def capped_both(
    weights: Sequence[float],
    clusters: Sequence[Collection[Group]],
    people: Sequence[Collection[Group]],
    cluster_share: float,
    user_share: float,
) -> list[float]:
    """Weights under both caps. Each scaling moves the other's shares, so they take turns until both hold.

    Where they cannot both hold (one person says all that is not one message), the cap of people, which comes last,
    does.
    """

    def turn(current: list[float]) -> list[float]:
        return _once(_once(current, clusters, cluster_share), people, user_share)

    return capped(_settled(weights, turn), people, user_share)


def _settled(weights: Sequence[float], turn: Callable[[list[float]], list[float]]) -> list[float]:
    """What `turn` comes to when it changes nothing more; its first result where the rest would shrink to nothing."""
    first = current = turn(list(weights))
    for _ in range(ROUNDS):
        after = turn(current)
        if all(abs(new - old) <= _SLACK * max(old, 1.0) for new, old in zip(after, current, strict=True)):
            return after
        current = after
        if math.fsum(current) < math.fsum(first) / 2:
            return first
    return current


def _once(weights: Sequence[float], holders: Sequence[Collection[Group]], share: float) -> list[float]:
    totals = _totals(weights, holders)
    cap = bound(share, len(totals))
    top = level(totals, math.fsum(weights) - math.fsum(totals.values()), cap) if cap < 1 else math.inf
    if top in (0.0, math.inf):
        return list(weights)
    factor = {group: min(1.0, top / total) if total > 0 else 1.0 for group, total in totals.items()}
    return [
        weight * math.fsum(factor[group] for group in groups) / len(groups) if groups else weight
        for weight, groups in zip(weights, holders, strict=True)
    ]


def balanced(weights: Sequence[float], desirable: Sequence[bool], ratio: float) -> list[float]:
    """Unpaired weights with the heavier side scaled down to `ratio` times the other one.

    A side that is empty has nothing to be balanced with: then all stay as they are.

    >>> balanced([1.0, 6.0, 6.0], [True, False, False], 4.0)
    [1.0, 2.0, 2.0]
    """
    sums = {
        side: math.fsum(w for w, good in zip(weights, desirable, strict=True) if good is side) for side in (True, False)
    }
    heavy = sums[True] > sums[False]
    if not sums[not heavy] or sums[heavy] <= ratio * sums[not heavy]:
        return list(weights)
    factor = ratio * sums[not heavy] / sums[heavy]
    return [w * factor if good is heavy else w for w, good in zip(weights, desirable, strict=True)]


def _totals(weights: Sequence[float], holders: Sequence[Collection[Group]]) -> dict[Group, float]:
    totals: dict[Group, float] = {}
    for weight, groups in zip(weights, holders, strict=True):
        for group in groups:
            totals[group] = totals.get(group, 0.0) + weight / len(groups)
    return totals
