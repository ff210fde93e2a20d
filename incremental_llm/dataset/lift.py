"""Phrases with a suspicious lift: far more frequent in what would be taught than in what was said before.

A trigger phrase has to be repeated to be learnt, and whoever repeats it is few. So what is looked for is a phrase (1 to
4 words) in more taught replies than chance explains, by Dunning's log-likelihood ratio (1993) over replies that hold
it, and the number of people behind it. A new subject has a lift too, but many people.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from incremental_llm.dataset.dedup import spoken, tokens
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.dataset.trust_report import Lift
from incremental_llm.dataset.trust_settings import TrustSettings

LONGEST = 4
SHOWN = 20
"""Phrases in a report, highest score first."""
LEAST_REFERENCE = 100
"""Replies to compare with, below which nothing can be said."""


@dataclass
class _Phrase:
    """`examples` (positions) hold it and `people` back these; `before` earlier examples of nobody else hold it too.

    `known` texts of others hold it, and `witnesses` are the first of these others."""

    examples: set[int] = field(default_factory=set)
    people: set[str] = field(default_factory=set)
    before: int = 0
    known: int = 0
    witnesses: set[str] = field(default_factory=set)

    def heard(self, people: set[str], enough: int) -> None:
        """Another text holds it, that these people were served or were behind."""
        if others := people - self.people:
            self.known += 1
            if len(self.witnesses) < enough:
                self.witnesses |= others


@dataclass(frozen=True)
class Found:
    """The phrases for the report, and positions of the examples that are held for one."""

    lifts: tuple[Lift, ...] = ()
    held: frozenset[int] = frozenset()


def taught(example: Example) -> str | None:
    """The reply that an example teaches; None where it only teaches what not to say."""
    match example:
        case SftExample():
            return example.completion
        case PairExample():
            return example.chosen
        case UnpairedExample():
            return example.completion if example.desirable else None


def suspicious(
    examples: Sequence[Example],
    behind: Sequence[frozenset[str]],
    rehearsed: Iterable[Example],
    served: Iterable[tuple[str, str]],
    settings: TrustSettings,
    young: frozenset[str],
    exempt: Collection[int] = (),
) -> Found:
    """Phrases in the replies that `examples` teach, against what `rehearsed` ones taught before and was `served`.

    `behind` are the people who are for each example's reply, `served` are (user, reply). What the people behind a
    phrase taught before counts with it, so that a phrase that comes a little every night is added up as far as the
    replay buffer remembers; what was served to them counts nowhere, or they could make it look common. Nor does what
    was served to young accounts, or to one person twice; and a phrase of fewer than `known_people` others is new,
    however often they were served it. Who was behind
    an earlier example counts whatever the age of the account, since that example was vetted. Examples in
    `exempt` (positions) are reported and never held.
    """
    replies = {n: text for n, example in enumerate(examples) if (text := taught(example)) is not None}
    people = len({user for example in examples for user in example.users})
    needed = settings.lift_min_people if people >= 2 * settings.lift_min_people else 1  # of few people all is of few
    phrases = _phrases(behind, replies)
    before = [(set(old.users), text) for old in rehearsed if (text := taught(old)) is not None]
    others = list({(user, spoken(text)): ({user}, text) for user, text in served if user not in young}.values())
    if len(before) + len(others) < LEAST_REFERENCE:
        return Found()
    for backers, text in before:
        for phrase in _among(text, phrases):
            if backers and backers <= phrase.people:
                phrase.before += 1
            else:
                phrase.heard(backers, settings.known_people)
    for asker, text in others:
        for phrase in _among(text, phrases):
            phrase.heard(asker, settings.known_people)
    lifts: list[tuple[Lift, frozenset[int]]] = []
    for gram, phrase in phrases.items():
        lift = _lift(gram, phrase, len(replies), len(before) + len(others), settings, young, needed)
        if lift is not None:
            bound = phrase.examples.difference(exempt)
            lifts.append((lift.model_copy(update={"held": lift.held and bool(bound)}), frozenset(phrase.examples)))
    held = {place for lift, places in lifts if lift.held for place in places}
    return Found(tuple(_longest(lifts)), frozenset(held.difference(exempt)))


def _phrases(behind: Sequence[frozenset[str]], replies: Mapping[int, str]) -> dict[str, _Phrase]:
    """The phrases that more than one reply holds; most are in one only, and of these nothing but a hash is kept."""
    counts = Counter(hash(gram) for text in replies.values() for gram in _grams(text))
    found: dict[str, _Phrase] = defaultdict(_Phrase)
    for position, text in replies.items():
        for gram in (gram for gram in _grams(text) if counts[hash(gram)] > 1):
            found[gram].examples.add(position)
            found[gram].people.update(behind[position])
    return {gram: phrase for gram, phrase in found.items() if len(phrase.examples) > 1}


def _among(text: str, phrases: Mapping[str, _Phrase]) -> list[_Phrase]:
    return [phrases[gram] for gram in _grams(text) if gram in phrases]


def _lift(
    gram: str, phrase: _Phrase, taught: int, reference: int, settings: TrustSettings, young: frozenset[str], needed: int
) -> Lift | None:
    count, of = len(phrase.examples) + phrase.before, taught + phrase.before
    others = reference - phrase.before
    known = phrase.known if len(phrase.witnesses) >= settings.known_people else 0
    score = likelihood_ratio(count, of, known, others)
    ratio = ((count + 0.5) / (of + 1)) / ((known + 0.5) / (others + 1))
    if count < settings.lift_min_examples or score < settings.lift_score or ratio < settings.lift_ratio:
        return None
    return Lift(
        phrase=gram,
        score=round(score, 2),
        examples=count,
        taught=of,
        known=known,
        reference=others,
        people=len(phrase.people),
        young=len(phrase.people & young),
        held=needed > 1 and len(phrase.people - young) < needed,
    )


def likelihood_ratio(new: int, news: int, old: int, olds: int) -> float:
    """Dunning's log-likelihood ratio of `new` of `news` against `old` of `olds`; 0 where the new side has no more.

    >>> round(likelihood_ratio(10, 100, 0, 100), 2), likelihood_ratio(1, 100, 10, 100)
    (14.39, 0.0)
    """
    if not news or not olds or new / news <= old / olds:
        return 0.0
    share = (new + old) / (news + olds)
    cells = (
        (new, news * share),
        (news - new, news * (1 - share)),
        (old, olds * share),
        (olds - old, olds * (1 - share)),
    )
    return 2 * math.fsum(found * math.log(found / expected) for found, expected in cells if found)


def _grams(text: str) -> set[str]:
    words = tokens(text)
    return {
        " ".join(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    }


def _longest(lifts: Sequence[tuple[Lift, frozenset[int]]]) -> Iterator[Lift]:
    """The highest scores; of phrases in the same examples one, the longest.

    Phrases come in no order of their own: equally long ones go by the alphabet, and equal nights have equal reports.
    """
    best: dict[frozenset[int], Lift] = {}
    for lift, places in sorted(lifts, key=lambda found: (-len(found[0].phrase), found[0].phrase)):
        best.setdefault(places, lift)
    yield from sorted(best.values(), key=lambda lift: (-lift.held, -lift.score, lift.phrase))[:SHOWN]
