"""How many of each group, and which: equal shares and uniform samples, as pure functions of a generator."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K", int, str)


def balanced_quotas(sizes: Mapping[K, int], capacity: int) -> dict[K, int]:
    """Split `capacity` over groups, such as increments: equal shares, what a small group leaves goes to the others.

    Shares differ by at most one except where a group has fewer; the odd places go to the last, of increments the
    newest.

    >>> balanced_quotas({1: 100, 2: 3, 3: 100}, 20)
    {1: 8, 2: 3, 3: 9}
    """
    room, level = capacity, max(sizes.values(), default=0)
    for below, size in enumerate(sorted(sizes.values())):
        share = room // (len(sizes) - below)
        if size > share:
            level = share
            break
        room -= size
    quotas = {group: min(size, level) for group, size in sizes.items()}
    odd = capacity - sum(quotas.values())
    for group in sorted((g for g, size in sizes.items() if size > level), reverse=True)[:odd]:
        quotas[group] += 1
    return dict(sorted(quotas.items()))


def reservoir(stream: Sequence[T], size: int, generator: random.Random) -> list[T]:
    """Vitter 1985, algorithm R: each element of `stream` is kept with probability size / len(stream); arrival order."""
    kept = list(range(min(size, len(stream))))
    for position in range(size, len(stream)):
        slot = generator.randrange(position + 1)
        if slot < size:
            kept[slot] = position
    return [stream[position] for position in sorted(kept)]


def subset(items: Sequence[T], size: int, generator: random.Random) -> list[T]:
    """`size` of `items` uniformly at random, in their order."""
    if size >= len(items):
        return list(items)
    return [items[position] for position in sorted(generator.sample(range(len(items)), size))]
