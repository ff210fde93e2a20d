"""Messages that say nearly the same are found in time that grows with their number."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.dataset import clusters
from incremental_llm.dataset.clusters import cluster

GENERATOR = random.Random(0)
WORDS = ["".join(GENERATOR.choices("bdfgklmnprstaeiou", k=10)) for _ in range(5000)]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Every two texts whose similarity was taken."""
    made: list[tuple[frozenset[str], frozenset[str]]] = []

    def counted(one: frozenset[str], other: frozenset[str]) -> float:
        made.append((one, other))
        return jaccard(one, other)

    jaccard = clusters.jaccard
    monkeypatch.setattr(clusters, "jaccard", counted)
    return made


def test_a_template_is_one_cluster_and_each_text_is_compared_with_few(compared) -> None:
    template = "Your order of the {} has been shipped to your home address and will arrive in the next days"
    assert cluster([template.format(word) for word in WORDS[:500]], 0.7) == [0] * 500
    assert len(compared) < 5 * 500


def test_texts_that_have_half_in_common_are_compared_with_the_last_of_each_bucket(compared, monkeypatch) -> None:
    monkeypatch.setattr(clusters, "_IN_BUCKET", 2)
    frame = "we are sorry to hear that the parcel was late and hope that"
    texts = [f"{frame} {' '.join(WORDS[5 * n : 5 * n + 5])}" for n in range(300)]
    assert cluster([*texts, texts[0] + " today"], 0.7) == [*range(300), 0]
    assert len(compared) < 300 * 32 * 2 < 0.9 * 300 * 299 / 2


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)])
def test_what_is_near_to_one_of_a_cluster_is_in_it(order: tuple[int, ...]) -> None:
    """Single linkage: the first and the last text are not near each other, both are near the second."""
    chain = [" ".join(WORDS[start : start + 20]) for start in (0, 2, 4)]
    sets = [clusters.shingles_of(text.split()) for text in chain]
    assert clusters.jaccard(sets[0], sets[1]) > 0.7 > clusters.jaccard(sets[0], sets[2])
    assert cluster([chain[n] for n in order], 0.7) == [0, 0, 0]


def test_other_numbers_and_negations_say_something_else() -> None:
    text = "You can return every pair of boots within {} days of the day on which the parcel came"
    assert cluster([text.format(30), text.format(45), text.format(30) + " thanks"], 0.7) == [0, 1, 0]


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=10), max_size=12), st.sampled_from([0.5, 0.7, 1.0]))
def test_clusters_hold_what_is_near_and_nothing_else(sentences: list[list[int]], similarity: float) -> None:
    """At 0.85 a pair shares no bucket once in 10^10; below, a cluster may miss one and never has one too many."""
    texts = [" ".join(WORDS[word] for word in sentence) for sentence in sentences]
    found = cluster(texts, similarity)
    assert joined(texts, similarity, found) == found, "who is in a cluster is near somebody in it"
    near = joined(texts, max(similarity, 0.85), [0] * len(texts))
    assert all(found[place] == found[label] for place, label in enumerate(near)), "who is near is in it"


def joined(texts: list[str], similarity: float, within: list[int]) -> list[int]:
    """Single linkage over all pairs of texts that stand in one cluster already."""
    sets = [clusters.shingles_of(text.split()) for text in texts]
    group = list(range(len(texts)))
    for one, other in itertools.combinations(range(len(texts)), 2):
        if within[one] == within[other] and clusters.jaccard(sets[one], sets[other]) >= similarity:
            low, high = sorted((group[one], group[other]))
            group = [low if label == high else label for label in group]
    return group
