"""Who wins a conflict, and how much several backers weigh: distinct people count, and young accounts less."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

Side = TypeVar("Side")


def winner(
    sides: Mapping[Side, Collection[str]], young: frozenset[str], margin: int = 1, young_weight: float = 0.5
) -> Side | None:
    """The side with at least `margin` more distinct people than any other; None where no side has.

    A side that nobody speaks against needs no margin. Young accounts decide only where all on every side are young.
    Beside others they can only hold: where another side would win with each of them counted as `young_weight` of a
    person, nobody wins. So no number of new accounts decides against an old one, nor one old one against all of them.

    >>> winner({"up": ["a", "b"], "down": ["c"]}, frozenset())
    'up'
    >>> winner({"up": ["a"], "down": ["n1", "n2"]}, frozenset({"n1", "n2"}))
    'up'
    >>> winner({"up": ["a"], "down": ["n1", "n2", "n3", "n4"]}, frozenset({"n1", "n2", "n3", "n4"}))
    """
    everybody = {person for people in sides.values() for person in people}
    old = everybody - young
    if not old:
        return _ahead({side: float(len(set(people))) for side, people in sides.items()}, margin)
    won = _ahead({side: float(len(old & set(people))) for side, people in sides.items()}, margin)
    heard = {side: sum(1.0 if one in old else young_weight for one in set(people)) for side, people in sides.items()}
    return won if _ahead(heard, margin) in (won, None) else None


def _ahead(counts: Mapping[Side, float], margin: int) -> Side | None:
    spoken = sorted(((count, place) for place, count in enumerate(counts.values()) if count), reverse=True)
    if not spoken or (len(spoken) > 1 and spoken[0][0] - spoken[1][0] < margin):
        return None
    return list(counts)[spoken[0][1]]


def backing(people: Collection[str], young: frozenset[str], young_weight: float, step: float, cap: float) -> float:
    """How many times a plain example one weighs that these people back: `step` more for each further one, up to `cap`.

    A young account is `young_weight` of a person beside others; where all are young, all of it is discounted. Another
    backer never lowers it.

    >>> [backing(people, frozenset("yz"), 0.5, 0.25, 2.0) for people in ("a", "ab", "ay", "ayz", "y", "yz")]
    [1.0, 1.25, 1.125, 1.25, 0.5, 0.625]
    """
    new = len(young.intersection(people))
    old = len(set(people)) - new
    if not old:
        return young_weight * min(cap, 1 + step * (new - 1)) if new else 1.0
    return min(cap, 1 + step * (old + young_weight * new - 1))
