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
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from rensa import RMinHash

from incremental_llm.dataset.dedup import numbers, spoken
from incremental_llm.dataset.rows import Numbers, among, distinct, mixed

HASHES = 128
BANDS = 32  # at Jaccard 0.7 a pair is a candidate with probability 1 - (1 - 0.7^4)^32 = 0.9998
_IN_BUCKET = 32
_AT_ONCE = 10_000  # texts whose signatures are held, 1 kB each
_SETS_HELD = 50_000  # texts whose words and word pairs are held, some kB each
_HIGH, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_SEED = 20261101


def cluster(texts: Sequence[str], similarity: float) -> list[int]:
    """For each text the position of the first text of its cluster (single linkage).

    Two texts belong together when the Jaccard similarity of their words and word pairs is at least `similarity` and
    their numbers and negations are the same.

    >>> cluster(["Buy at acme dot example now!", "buy at acme dot example", "We close at six."], 0.7)
    [0, 0, 2]
    """
    first: dict[tuple[str, ...], int] = {}
    parent = [first.setdefault(spoken(text), position) for position, text in enumerate(texts)]
    single = dict(zip(first.values(), first, strict=True))
    positions = np.fromiter(single, np.uint64, len(single))
    said = lru_cache(_SETS_HELD)(lambda position: shingles_of(single[position]))
    compared: Numbers = np.empty(0, np.uint64)
    for bucket in _buckets(single, texts):
        fresh = _pairs(bucket, positions)
        fresh = fresh[~among(fresh, compared)]
        compared = distinct(compared, fresh)
        for position, other in zip((fresh >> _HIGH).tolist(), (fresh & _LOW).tolist(), strict=True):
            if _root(parent, other) != _root(parent, position) and jaccard(said(position), said(other)) >= similarity:
                _join(parent, other, position)
    return [_root(parent, position) for position in range(len(texts))]


def _buckets(single: Mapping[int, tuple[str, ...]], texts: Sequence[str]) -> Iterator[Numbers]:
    """Band by band the bucket of each text: texts with other numbers or negations share none."""
    figures: dict[tuple[str, ...], int] = {}
    which = np.array([figures.setdefault(numbers(texts[n]), len(figures)) for n in single], dtype=np.uint64)
    rows = HASHES // BANDS
    parts = []
    for start in range(0, len(single), _AT_ONCE):
        sets = map(shingles_of, itertools.islice(single.values(), start, start + _AT_ONCE))
        values = np.array(RMinHash.digests_from_token_sets(map(list, sets), HASHES, _SEED), dtype=np.uint64)
        bands = values.reshape(len(values), BANDS, rows)
        parts.append(mixed(bands[:, :, row] for row in range(rows)))
    if parts:
        yield from (mixed((which, band)) for band in np.concatenate(parts).T)


def _pairs(bucket: Numbers, positions: Numbers) -> Numbers:
    """position * 2^32 + other, sorted, for each text and the last `_IN_BUCKET` others of its bucket before it."""
    order = np.argsort(bucket, kind="stable")
    sorted_buckets, sorted_positions = bucket[order], positions[order]
    found = []
    for back in range(1, min(_IN_BUCKET, len(order) - 1) + 1):
        same = sorted_buckets[back:] == sorted_buckets[:-back]
        if not same.any():  # then no bucket has as many, nor more
            break
        found.append((sorted_positions[back:][same] << _HIGH) | sorted_positions[:-back][same])
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)


def min_hash(shingles: frozenset[str]) -> RMinHash:
    """The MinHash signature of a set."""
    hashed = RMinHash(HASHES, _SEED)
    hashed.update(list(shingles))
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
