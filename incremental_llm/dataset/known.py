"""What is said anyway: messages that enough people were served, whoever judges them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from rensa import RMinHashLSH

from incremental_llm.dataset.clusters import BANDS, HASHES, jaccard, min_hash, shingles_of
from incremental_llm.dataset.dedup import numbers, spoken


def known(
    messages: Mapping[int, Iterable[str]], heard: Iterable[tuple[str, str]], similarity: float, enough: int
) -> set[int]:
    """Which `messages` (each some texts) at least `enough` people heard, of (person, text), or something near.

    Only the messages are indexed, and one that is known is looked up no more, so that this is linear in what was heard.
    Near is what it is in `clusters`: the Jaccard similarity of words and word pairs, and equal numbers and negations.
    """
    texts = {(spoken(text), numbers(text)): message for message, said in messages.items() for text in said}
    shingles: dict[int, tuple[frozenset[str], tuple[str, ...], int]] = {}
    index = RMinHashLSH(0.7, HASHES, BANDS)
    for place, ((words, figures), message) in enumerate(texts.items()):
        shingles[place] = (shingles_of(words), figures, message)
        index.insert(place, min_hash(shingles[place][0]))
    people: dict[int, set[str]] = defaultdict(set)
    found: dict[tuple[str, ...], set[int]] = {}
    for person, text in heard if texts else ():
        words = spoken(text)
        if words not in found:
            own, figures = shingles_of(words), numbers(text)
            near = {shingles[place] for place in index.query(min_hash(own))}
            open_ = [one for one in near if len(people[one[2]]) < enough and one[1] == figures]
            found[words] = {message for said, _, message in open_ if jaccard(own, said) >= similarity}
        for message in found[words]:
            people[message].add(person)
    return {message for message, persons in people.items() if len(persons) >= enough}
