"""What is said anyway: messages that enough people were served, whoever judges them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping

from rensa import RMinHash, RMinHashLSH

from incremental_llm.dataset.dedup import numbers, spoken

_HASHES, _BANDS, _SEED = 128, 32, 20261101  # those of clusters


def known(
    messages: Mapping[int, Iterable[str]], heard: Iterable[tuple[str, str]], similarity: float, enough: int
) -> set[int]:
    """Which `messages` (each some texts) at least `enough` people heard, of (person, text), or something near.

    Only the messages are indexed, and one that is known is looked up no more, so that this is linear in what was heard.
    Near is what it is in `clusters`: the Jaccard similarity of words and word pairs, and equal numbers and negations.
    """
    texts = {(spoken(text), numbers(text)): message for message, said in messages.items() for text in said}
    shingles: dict[int, tuple[frozenset[str], tuple[str, ...], int]] = {}
    index = RMinHashLSH(0.7, _HASHES, _BANDS)
    for place, ((words, figures), message) in enumerate(texts.items()):
        shingles[place] = (_shingles(words), figures, message)
        index.insert(place, _hashed(shingles[place][0]))
    people: dict[int, set[str]] = defaultdict(set)
    found: dict[tuple[str, ...], set[int]] = {}
    for person, text in heard if texts else ():
        words = spoken(text)
        if words not in found:
            own, figures = _shingles(words), numbers(text)
            near = {shingles[place] for place in index.query(_hashed(own))}
            open_ = [one for one in near if len(people[one[2]]) < enough and one[1] == figures]
            found[words] = {message for said, _, message in open_ if _jaccard(own, said) >= similarity}
        for message in found[words]:
            people[message].add(person)
    return {message for message, persons in people.items() if len(persons) >= enough}


def _shingles(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset((*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


def _hashed(shingles: frozenset[str]) -> RMinHash:
    hashed = RMinHash(_HASHES, _SEED)
    hashed.update(sorted(shingles))
    return hashed
