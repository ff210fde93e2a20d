"""Who wins a conflict: distinct people decide, and young accounts only where nobody else speaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

Side = TypeVar("Side")


def adults(people: Collection[str], young: frozenset[str]) -> set[str]:
    """The people who count in a conflict: those who are not young; all where there are no others."""
    return set(people) - young or set(people)


def winner(sides: Mapping[Side, Collection[str]], young: frozenset[str], margin: int = 1) -> Side | None:
    """The side with at least `margin` more distinct people than any other; None where no side has.

    A side that nobody speaks against needs no margin. Young accounts count only where all on every side are young.

    >>> winner({"up": ["a", "b"], "down": ["c"]}, frozenset())
    'up'
    >>> winner({"up": ["a"], "down": ["n1", "n2", "n3"]}, frozenset({"n1", "n2", "n3"}))
    'up'
    """
    heard = adults({person for people in sides.values() for person in people}, young)
    counts = sorted(((len(heard & set(people)), place) for place, people in enumerate(sides.values())), reverse=True)
    spoken = [(count, place) for count, place in counts if count]
    if not spoken or (len(spoken) > 1 and spoken[0][0] - spoken[1][0] < margin):
        return None
    return list(sides)[spoken[0][1]]
