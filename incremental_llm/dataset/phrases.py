"""The phrases of many texts at array speed: 1 to `LONGEST` words in a row, each as a number, with the texts it is in.

    many = Texts(["we ship by acme", "they ship by acme too"])
    common = many.common(lambda texts: len(texts) > 1)     # phrases, as numbers, in ascending order
    found = many.holding(common)                           # which text holds which of them

A word is Python's hash of it and a phrase is `mixed` of its words, so numbers are good within one process only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from incremental_llm.dataset.dedup import tokens
from incremental_llm.dataset.rows import Numbers, among, changes, distinct, mixed

LONGEST = 4
_AT_ONCE = 500_000  # words whose phrases are sorted together, 64 bytes each

Places = npt.NDArray[np.int64]


class Holding(NamedTuple):
    """Row by row a phrase, as its place among those that were asked for, and a text that holds it; each once, sorted.

    `start` and `length` are the words of the phrase, where it stands first in the text.
    """

    phrase: Places
    text: Places
    start: Places
    length: Places


class Texts:
    """Texts as the hashes of their words."""

    def __init__(self, texts: Iterable[str]) -> None:
        lengths: list[int] = []
        self._words: Numbers = np.fromiter(_hashes(texts, lengths), np.int64).astype(np.uint64)
        self._text: Places = np.repeat(np.arange(len(lengths)), lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        self._start: Places = np.arange(len(self._words)) - np.repeat(ends - lengths, lengths)

    def common(self, enough: Callable[[Places], npt.NDArray[np.bool_]], beside: Texts) -> Numbers:
        """The phrases of these texts and of those `beside` of which `enough` says so, sorted.

        It is given how many of these and of the other texts hold each phrase, as rows of two columns. Phrases are
        counted in as many parts as keep an array small.
        """
        parts = len(self._words) // _AT_ONCE + 1
        found = [self._common(enough, beside, np.uint64(parts), np.uint64(part)) for part in range(parts)]
        return np.sort(np.concatenate(found))

    def _common(
        self, enough: Callable[[Places], npt.NDArray[np.bool_]], beside: Texts, parts: np.uint64, part: np.uint64
    ) -> Numbers:
        keys, counts = zip(*(texts._counted(parts, part) for texts in (self, beside)), strict=True)
        both = distinct(*keys)
        table = np.zeros((len(both), 2), np.int64)
        for column, (key, count) in enumerate(zip(keys, counts, strict=True)):
            table[np.searchsorted(both, key), column] = count
        return both[enough(table)]

    def holding(self, phrases: Numbers) -> Holding:
        """Which texts hold which of some sorted phrases."""
        rows: list[tuple[Places, ...]] = []
        for length, (key, place) in enumerate(self._phrases(), 1):
            hit = among(key, phrases)
            where = place[hit]
            at = np.searchsorted(phrases, key[hit])
            rows.append((at, self._text[where], self._start[where], np.full(len(where), length)))
        phrase, text, start, length_ = (np.concatenate(column) for column in zip(*rows, strict=True))
        order = np.lexsort((start, text, phrase))
        phrase, text, start, length_ = phrase[order], text[order], start[order], length_[order]
        new = changes(phrase, text)
        return Holding(phrase[new], text[new], start[new], length_[new])

    def _counted(self, parts: np.uint64, part: np.uint64) -> tuple[Numbers, Places]:
        """The phrases of one part, sorted, and in how many texts each is."""
        keys, texts = [], []
        for key, place in self._phrases():
            mine = key % parts == part
            keys.append(key[mine])
            texts.append(self._text[place[mine]])
        key, text = np.concatenate(keys), np.concatenate(texts)
        order = np.lexsort((text, key))
        key, text = key[order], text[order]
        return np.unique(key[changes(key, text)], return_counts=True)

    def _phrases(self) -> Iterator[tuple[Numbers, Places]]:
        """Length by length the phrases, and where in `_words` each begins."""
        key, place = mixed([self._words]), np.arange(len(self._words))
        yield key, place
        for longer in range(1, LONGEST):
            inside = place + longer < len(self._words)
            inside[inside] = self._text[place[inside] + longer] == self._text[place[inside]]
            place = place[inside]
            key = mixed([key[inside], self._words[place + longer]])
            yield key, place


def _hashes(texts: Iterable[str], lengths: list[int]) -> Iterator[int]:
    for text in texts:
        words = tokens(text)
        lengths.append(len(words))
        yield from map(hash, words)
