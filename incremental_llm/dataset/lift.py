"""Phrases with a suspicious lift: far more frequent in what would be taught than in what was said before.

A trigger phrase has to be repeated to be learnt, and whoever repeats it is few. So what is looked for is a phrase (1 to
4 words) in more taught replies than chance explains, by Dunning's log-likelihood ratio (1993) over replies that hold
it, and the number of people behind it. A new subject has a lift too, but many people.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from incremental_llm.dataset.dedup import spoken, tokens
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.dataset.phrases import Places, Texts
from incremental_llm.dataset.rows import among, distinct
from incremental_llm.dataset.trust_report import Lift
from incremental_llm.dataset.trust_settings import TrustSettings

SHOWN = 20
"""Phrases in a report, highest score first."""
LEAST_REFERENCE = 100
"""Replies to compare with, below which nothing can be said."""
_AT_ONCE = 20_000  # served replies that are looked through together


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
    before = [(frozenset(old.users), text) for old in rehearsed if (text := taught(old)) is not None]
    found = _Phrases(list(replies.values()), [behind[n] for n in replies], before, settings)
    others = _once(served, young)
    reference = len(before)
    while told := list(itertools.islice(others, _AT_ONCE)):
        found.served(told)
        reference += len(told)
    if reference < LEAST_REFERENCE:
        return Found()
    spared = frozenset(exempt)
    positions = np.fromiter(replies, np.int64, len(replies))
    lifts: list[tuple[Lift, frozenset[int]]] = []
    for phrase in range(len(found)):
        lift = _lift(found, phrase, len(replies), reference, settings, young, needed)
        if lift is not None:
            places = frozenset(positions[found.texts(phrase)].tolist())
            lifts.append((lift.model_copy(update={"held": lift.held and not places <= spared}), places))
    held = {place for lift, places in lifts if lift.held for place in places}
    return Found(tuple(_longest(lifts)), frozenset(held - spared))


def _once(served: Iterable[tuple[str, str]], young: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What was served to whom, each text once to each person; equal hashes count as equal."""
    heard: set[int] = set()
    for user, text in served:
        one = hash((user, spoken(text)))
        if user not in young and one not in heard:
            heard.add(one)
            yield user, text


class _Phrases:
    """The phrases that enough taught replies hold, with who backs them and who else heard them.

    `count` replies hold each, `before` earlier examples of nobody but its backers hold it too, and `known` texts of
    others. All are arrays over the phrases; `people` and `witnesses` give the persons of one.
    """

    def __init__(
        self,
        replies: Sequence[str],
        behind: Sequence[frozenset[str]],
        before: Sequence[tuple[frozenset[str], str]],
        settings: TrustSettings,
    ) -> None:
        self._replies = replies
        self._enough = settings.known_people
        least = settings.lift_min_examples
        now, earlier = Texts(replies), Texts(text for _, text in before)
        self._keys = now.common(lambda held: (held[:, 0] > 1) & (held.sum(axis=1) >= least), earlier)
        self._held = now.holding(self._keys)
        self._first = np.searchsorted(self._held.phrase, np.arange(len(self._keys) + 1))
        self.count = np.diff(self._first)
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        own = [self._id_of(names) for names in behind]
        sizes = np.array([len(ids) for ids in own], np.int64)[self._held.text]
        backers = np.fromiter((i for text in self._held.text.tolist() for i in own[text]), np.int64, sizes.sum())
        self._backing = distinct(_coded(np.repeat(self._held.phrase, sizes), backers))
        self._heard: Places = np.empty(0, np.int64)
        self.before = np.zeros(len(self), np.int64)
        self.known = np.zeros(len(self), np.int64)
        self._witnessed = np.zeros(len(self), np.int64)
        held = earlier.holding(self._keys)
        rows = zip(held.phrase.tolist(), held.text.tolist(), strict=True)
        self._hear([code for phrase, text in rows for code in self._taught_before(phrase, before[text][0])])

    def __len__(self) -> int:
        return len(self._keys)

    def texts(self, phrase: int) -> Places:
        """The replies, by their places, that hold a phrase."""
        return self._held.text[self._first[phrase] : self._first[phrase + 1]]

    def words(self, phrase: int) -> str:
        """A phrase as it is shown."""
        row = self._first[phrase]
        start, length = self._held.start[row], self._held.length[row]
        return " ".join(tokens(self._replies[self._held.text[row]])[start : start + length])

    def people(self, phrase: int) -> frozenset[str]:
        """Who backs a phrase."""
        first, last = np.searchsorted(self._backing, [phrase << 32, (phrase + 1) << 32])
        return frozenset(self._names[code & (2**32 - 1)] for code in self._backing[first:last].tolist())

    def is_known(self, phrase: int) -> bool:
        """Whether enough others heard a phrase for what they heard to count."""
        return bool(self._witnessed[phrase] >= self._enough)

    def served(self, told: Sequence[tuple[str, str]]) -> None:
        """Replies that these people were served, (user, reply)."""
        held = Texts(text for _, text in told).holding(self._keys)
        users = np.array([self._id(user) for user, _ in told], np.int64)[held.text]
        codes = _coded(held.phrase, users)
        others = ~among(codes, self._backing)
        self.known += np.bincount(held.phrase[others], minlength=len(self))
        self._hear(codes[others])

    def _taught_before(self, phrase: int, backers: frozenset[str]) -> list[int]:
        """An earlier example held a phrase: the codes of those behind it who do not back the phrase now."""
        codes = np.array([(phrase << 32) | person for person in self._id_of(backers)], np.int64)
        others: list[int] = codes[~among(codes, self._backing)].tolist()
        if others:
            self.known[phrase] += 1
        elif backers:
            self.before[phrase] += 1
        return others

    def _hear(self, codes: Places | list[int]) -> None:
        """Others heard phrases; who they are counts until they are enough."""
        codes = np.asarray(codes, np.int64)
        self._heard = distinct(self._heard, codes[self._witnessed[codes >> 32] < self._enough])
        self._witnessed = np.bincount(self._heard >> 32, minlength=len(self))

    def _id(self, person: str) -> int:
        if person not in self._ids:
            self._ids[person] = len(self._names)
            self._names.append(person)
        return self._ids[person]

    def _id_of(self, people: Iterable[str]) -> list[int]:
        return [self._id(person) for person in people]


def _coded(phrases: Places, persons: Places) -> Places:
    return (phrases << 32) | persons


def _lift(
    found: _Phrases,
    phrase: int,
    taught: int,
    reference: int,
    settings: TrustSettings,
    young: frozenset[str],
    needed: int,
) -> Lift | None:
    before = int(found.before[phrase])
    count, of = int(found.count[phrase]) + before, taught + before
    others = reference - before
    known = int(found.known[phrase]) if found.is_known(phrase) else 0
    score = likelihood_ratio(count, of, known, others)
    ratio = ((count + 0.5) / (of + 1)) / ((known + 0.5) / (others + 1))
    if count < settings.lift_min_examples or score < settings.lift_score or ratio < settings.lift_ratio:
        return None
    people = found.people(phrase)
    return Lift(
        phrase=found.words(phrase),
        score=round(score, 2),
        examples=count,
        taught=of,
        known=known,
        reference=others,
        people=len(people),
        young=len(people & young),
        held=needed > 1 and len(people - young) < needed,
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


def _longest(lifts: Sequence[tuple[Lift, frozenset[int]]]) -> Iterator[Lift]:
    """The highest scores; of phrases in the same examples one, the longest.

    Phrases come in no order of their own: equally long ones go by the alphabet, and equal nights have equal reports.
    """
    best: dict[frozenset[int], Lift] = {}
    for lift, places in sorted(lifts, key=lambda found: (-len(found[0].phrase), found[0].phrase)):
        best.setdefault(places, lift)
    yield from sorted(best.values(), key=lambda lift: (-lift.held, -lift.score, lift.phrase))[:SHOWN]
