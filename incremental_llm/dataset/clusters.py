"""Texts that say nearly the same: clusters by MinHash (Broder 1997), each candidate checked by its true similarity.

Unlike duplicates (dedup.py), which must not differ in meaning, members of a cluster are only counted together: what
binds a cluster weakens a repeated message, and costs a false member little.

The one design fact: a text is compared with at most the last `_IN_BUCKET` texts of each of its `BANDS` buckets, and
never with one that is in its cluster already. So time grows with the number of texts, whatever they have in common.
Where more texts share a bucket (boilerplate around what differs), a text is still found by those that came shortly
before it, and by the buckets of what differs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import partial

from rensa import RMinHash

from incremental_llm.dataset.dedup import numbers, spoken

HASHES = 128
BANDS = 32  # at Jaccard 0.7 a pair is a candidate with probability 1 - (1 - 0.7^4)^32 = 0.9998
_IN_BUCKET = 32
_SEED = 20261101


def cluster(texts: Sequence[str], similarity: float) -> list[int]:
    """For each text the position of the first text of its cluster (single linkage).

    Two texts belong together when the Jaccard similarity of their words and word pairs is at least `similarity` and
    their numbers and negations are the same.

    >>> cluster(["Buy at acme dot example now!", "buy at acme dot example", "We close at six."], 0.7)
    [0, 0, 2]
    """
    parent: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    shingles: dict[int, frozenset[str]] = {}
    buckets: dict[object, deque[int]] = defaultdict(partial(deque, maxlen=_IN_BUCKET))
    for position, text in enumerate(texts):
        words = spoken(text)
        parent.append(known.setdefault(words, position))
        if parent[position] != position:
            continue
        shingles[position] = shingles_of(words)
        shared = [buckets[key] for key in _bands(shingles[position], numbers(text))]
        for other in sorted(set().union(*shared), reverse=True):
            if _root(parent, other) != _root(parent, position) and (
                jaccard(shingles[position], shingles[other]) >= similarity
            ):
                _join(parent, other, position)
        for bucket in shared:
            bucket.append(position)
    return [_root(parent, position) for position in range(len(texts))]


def _bands(shingles: frozenset[str], figures: tuple[str, ...]) -> Iterator[object]:
    """The buckets of a text: texts with other numbers or negations share none."""
    values, rows = min_hash(shingles).digest(), HASHES // BANDS
    for start in range(0, HASHES, rows):
        yield start, figures, tuple(values[start : start + rows])


def min_hash(shingles: frozenset[str]) -> RMinHash:
    """The MinHash signature of a set."""
    hashed = RMinHash(HASHES, _SEED)
    hashed.update(sorted(shingles))
    return hashed


def shingles_of(words: Sequence[str]) -> frozenset[str]:
    """The words of a text and its pairs of neighbouring words."""
    return frozenset((*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of two sets that is in both, 1 for two empty ones."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


def _root(parent: list[int], position: int) -> int:
    while parent[position] != position:
        parent[position] = parent[parent[position]]
        position = parent[position]
    return position


def _join(parent: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(parent, one), _root(parent, other)))
    parent[second] = first
