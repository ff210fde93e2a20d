"""How much of a night's loss weight one person or one message may have, as pure functions of weights.

Weights are scaled down and nothing is dropped. Every example is carried by one holder or by nobody; `carriers` says who
carries what several people back.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", bound=Hashable)

ROUNDS = 20
LEAST_KEPT = 0.5
"""What the heavier side keeps of its weight when it is balanced, however light the other one is."""
_SLACK = 1e-9


def carriers(weights: Sequence[float], people: Sequence[Collection[str]]) -> list[str | None]:
    """For each example the one of its people who backs least in all, the first by name of equals; None for nobody.

    A cap on a person then scales what that person carries. Whoever agrees with everybody carries only what nobody else
    backs, and so cannot have others' examples scaled down; two who say all the same are one carrier.

    >>> carriers([1.0, 1.0, 1.0], [("a", "busy"), ("b", "busy"), ("busy",)])
    ['a', 'b', 'busy']
    """
    backed: dict[str, float] = defaultdict(float)
    for weight, names in zip(weights, people, strict=True):
        for name in names:
            backed[name] += weight
    return [min(names, key=lambda name: (backed[name], name)) if names else None for names in people]


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


def largest(weights: Sequence[float], holders: Sequence[Group | None]) -> float:
    """The largest share that one holder has of all weight; 0 where there is none."""
    whole = math.fsum(weights)
    return max(_totals(weights, holders).values(), default=0.0) / whole if whole > 0 else 0.0


def bound(share: float, groups: int) -> float:
    """The share that is asked of so many groups: `share`, but never less than twice an equal one."""
    return min(1.0, max(share, 2 / groups)) if groups else 1.0


def capped(weights: Sequence[float], holders: Sequence[Group | None], share: float) -> list[float]:
    """`weights` scaled down until no holder has more than `bound(share, holders)` of what is left.

    An example without a holder is nobody's: it is never scaled, and counts in the whole.
    """
    totals = _totals(weights, holders)
    cap = bound(share, len(totals))
    top = level(totals, math.fsum(w for w, holder in zip(weights, holders, strict=True) if holder is None), cap)
    return [
        weight if holder is None or totals.get(holder, 0.0) <= top else weight * top / totals[holder]
        for weight, holder in zip(weights, holders, strict=True)
    ]


def capped_both(
    weights: Sequence[float],
    messages: Sequence[Group | None],
    people: Sequence[str | None],
    message_share: float,
    user_share: float,
) -> list[float]:
    """Weights under both caps. Each scaling moves the other's shares, so they take turns until both hold.

    Where they cannot both hold but by shrinking the rest to nothing (one person says all that is not one message), the
    cap of people alone scales the weights as they were, and always holds.
    """
    after = _settled(weights, lambda current: capped(capped(current, messages, message_share), people, user_share))
    return capped(weights, people, user_share) if after is None else after


def balanced(
    weights: Sequence[float],
    desirable: Sequence[bool],
    ratio: float,
    scaled: Callable[[list[float]], list[float]] = list,
) -> list[float]:
    """Unpaired weights, under the caps that `scaled` applies, with the heavier side at most `ratio` times the other.

    The sides are compared as the caps leave them, and the caps have the last word. The heavier side goes no lower than
    `LEAST_KEPT` of what it weighed: else the fewer say the other thing, the more each of them would. A side that is
    empty has nothing to be balanced with.

    >>> balanced([1.0, 3.0, 3.0], [True, False, False], 4.0)
    [1.0, 2.0, 2.0]
    >>> balanced([1.0, 300.0], [True, False], 4.0)
    [1.0, 150.0]
    """
    after, kept = scaled(list(weights)), 1.0
    up, down = sides(after, desirable)
    heavy = up > down
    for _ in range(ROUNDS):
        up, down = sides(after, desirable)
        more, less = (up, down) if heavy else (down, up)
        if not less or more <= ratio * less * (1 + 1e-6) or kept == LEAST_KEPT:
            break
        kept = max(LEAST_KEPT, kept * ratio * less / more)
        after = scaled([w * kept if good is heavy else w for w, good in zip(weights, desirable, strict=True)])
    return after


def sides(weights: Sequence[float], desirable: Sequence[bool]) -> tuple[float, float]:
    """The weight of what is desirable, and of what is not."""
    up = math.fsum(w for w, good in zip(weights, desirable, strict=True) if good)
    return up, math.fsum(w for w, good in zip(weights, desirable, strict=True) if not good)


def _settled(weights: Sequence[float], turn: Callable[[list[float]], list[float]]) -> list[float] | None:
    """What `turn` comes to when it changes nothing more, or after enough turns; None where all shrinks to nothing."""
    first = current = turn(list(weights))
    for _ in range(ROUNDS):
        after = turn(current)
        if all(abs(new - old) <= 1e-7 * max(old, 1e-12) for new, old in zip(after, current, strict=True)):
            return after
        current = after
        if math.fsum(current) < math.fsum(first) / 2:
            return None
    return current


def _totals(weights: Sequence[float], holders: Sequence[Group | None]) -> dict[Group, float]:
    totals: dict[Group, float] = {}
    for weight, holder in zip(weights, holders, strict=True):
        if holder is not None and weight > 0:
            totals[holder] = totals.get(holder, 0.0) + weight
    return totals
