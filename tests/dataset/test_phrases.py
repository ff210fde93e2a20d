"""Phrases found by arrays are those that a walk over the words finds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.dataset import phrases
from incremental_llm.dataset.dedup import tokens
from incremental_llm.dataset.phrases import LONGEST, Texts

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), max_size=6)


def walked(text: str) -> set[str]:
    words = tokens(text)
    return {" ".join(words[n : n + k]) for k in range(1, LONGEST + 1) for n in range(len(words) - k + 1)}


def shown(texts: list[str], held: phrases.Holding) -> list[tuple[str, int]]:
    starts = zip(held.start.tolist(), held.length.tolist(), held.text.tolist(), strict=True)
    return [(" ".join(tokens(texts[text])[start : start + length]), text) for start, length, text in starts]


@given(TEXTS, TEXTS, st.integers(1, 4))
def test_common_phrases_and_who_holds_them(texts: list[str], others: list[str], least: int) -> None:
    here, there = (Counter(phrase for text in part for phrase in walked(text)) for part in (texts, others))
    wanted = {phrase for phrase, count in here.items() if count > 1 and count + there[phrase] >= least}
    many, beside = Texts(texts), Texts(others)
    keys = many.common(lambda held: (held[:, 0] > 1) & (held.sum(axis=1) >= least), beside)
    assert len(keys) == len(wanted)
    assert sorted(shown(texts, many.holding(keys))) == sorted(
        (phrase, place) for place, text in enumerate(texts) for phrase in walked(text) & wanted
    )
    assert sorted(shown(others, beside.holding(keys))) == sorted(
        (phrase, place) for place, text in enumerate(others) for phrase in walked(text) & wanted
    )


@given(TEXTS)
def test_parts_find_what_the_whole_finds(texts: list[str]) -> None:
    whole = Texts(texts).common(lambda held: held[:, 0] > 1, Texts([]))
    many, phrases_at_once = Texts(texts), phrases._AT_ONCE
    try:
        phrases._AT_ONCE = 3
        np.testing.assert_array_equal(many.common(lambda held: held[:, 0] > 1, Texts([])), whole)
    finally:
        phrases._AT_ONCE = phrases_at_once
