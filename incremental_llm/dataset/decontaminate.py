"""Whether a question stands in an evaluation suite: what is measured must not be trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from rapidfuzz import fuzz, process

from incremental_llm.dataset.dedup import normalised, numbers, tokens

SHORTEST_PHRASE = 5
"""Words from which a suite's question counts as asked when it stands inside a longer text; fewer are common speech."""


PASSAGE = 13
"""Words in a row that a training text may not share with a suite (Brown et al. 2020, appendix C)."""


class SuiteIndex:
    """The questions of all suites, ready to be compared with, and their `passages`: answers, choices, earlier turns.

    A text stands in a suite when it is equal but for case, spaces and punctuation, when it holds the question word for
    word, or when it is at least `similarity` (Indel ratio, 0 to 100) alike with the same numbers, number words and
    negations.

    >>> index = SuiteIndex(["How many days do I have to return boots?"])
    >>> "how many days do I have to return boots" in index, "How many days do I have to return a tent?" in index
    (True, False)
    """

    def __init__(self, texts: Iterable[str], similarity: float = 95.0, passages: Iterable[str] = ()) -> None:
        self.similarity = similarity
        self._exact: set[tuple[str, ...]] = set()
        self._by_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._seen: dict[tuple[str, ...], bool] = {}
        self._passages: set[int] = set()
        for text in passages:
            self._passages.update(_windows(tokens(text)))
        for text in texts:
            words = tokens(text)
            self._passages.update(_windows(words))
            if words and words not in self._exact:
                self._exact.add(words)
                self._by_numbers[numbers(text)].append(normalised(text))
        self._phrase_lengths = {len(words) for words in self._exact if len(words) >= SHORTEST_PHRASE}

    def __contains__(self, text: str) -> bool:
        words = tokens(text)
        if words not in self._seen:
            asked = words in self._exact or self._within(words) or self._nearly(normalised(text), numbers(text))
            self._seen[words] = asked
        return self._seen[words]

    def shares_passage(self, text: str) -> bool:
        """Whether `PASSAGE` words in a row stand in a suite too; equal hashes count as equal words."""
        return bool(self._passages) and not self._passages.isdisjoint(_windows(tokens(text)))

    def _within(self, words: tuple[str, ...]) -> bool:
        return any(
            words[start : start + length] in self._exact
            for length in self._phrase_lengths
            for start in range(len(words) - length + 1)
        )

    def _nearly(self, plain: str, figures: tuple[str, ...]) -> bool:
        candidates = self._by_numbers.get(figures, ())
        return process.extractOne(plain, candidates, scorer=fuzz.ratio, score_cutoff=self.similarity) is not None


def _windows(words: tuple[str, ...]) -> Iterator[int]:
    return (hash(words[start : start + PASSAGE]) for start in range(len(words) - PASSAGE + 1))
