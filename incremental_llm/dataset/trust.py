"""What few people, new ones or one message may not do: held examples, and weights under the caps of the settings.

    drafts -> within_topics -> (merged) -> vet -> examples that are left, drops for those that are held, a report

Everything is counted by distinct people. What is held is left out of this increment with a reason of its own; what is
only too much is scaled down.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from incremental_llm.chat import last_user_text
from incremental_llm.dataset.batch import Batch, Draft, Drafts
from incremental_llm.dataset.clusters import cluster
from incremental_llm.dataset.examples import KINDS, Example, Kind, PairExample, UnpairedExample
from incremental_llm.dataset.known import known
from incremental_llm.dataset.lift import suspicious, taught
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.dataset.shares import balanced, bound, capped_both, carriers, largest, sides
from incremental_llm.dataset.trust_report import Balance, Share, TrustReport
from incremental_llm.feedback.events import Correction, Thumb, references

_DIGITS = 6  # of a weight that was scaled


@dataclass(frozen=True)
class Vetted:
    """The examples that are left, with their weights, and drops for the others."""

    examples: list[Example]
    drops: list[Drop]
    report: TrustReport


def within_topics(batch: Batch, drafts: Drafts) -> Drafts:
    """Drafts but for those of users who have said as much on the topic or the question as counts, the earliest first.

    A draft of several users stays while it is within the cap of one of them. Corrections are nobody's click, and stay.
    """
    cap, busy = batch.trust.user_topic_cap, Counter[str]()
    clicks = [draft for draft in drafts.made if draft.signal != "correction"]
    for draft in clicks:
        busy.update(draft.example.users)
    if max(busy.values(), default=0) <= cap:
        return drafts
    subjects = dict(zip(map(id, clicks), _subjects(batch, clicks), strict=True))
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    kept = Drafts(drops=list(drafts.drops))
    for draft in sorted(drafts.made, key=lambda draft: (draft.order, draft.example.sources)):
        about = subjects.get(id(draft), ())
        event = draft.example.sources[-1]
        own = [[said[user, subject] for subject in about] for user in draft.example.users]
        if not about or any(all(event in events or len(events) < cap for events in of) for of in own):
            kept.made.append(draft)
            for events in (events for of in own for events in of):
                events.add(event)
        else:
            kept.drops.append(_drop(draft.example, DropReason.OVER_TOPIC_CAP))
    return kept


def vet(batch: Batch, examples: Sequence[Example], rehearsed: Sequence[Example] = ()) -> Vetted:
    """Examples, merged, under the trust settings of the batch.

    `rehearsed` are examples of earlier increments, such as the replay buffer's: what was taught before.
    """
    settings = batch.trust
    if not settings.enabled:
        return Vetted(list(examples), [], TrustReport())
    corrections = {stored.event.id for stored in batch.events if isinstance(stored.event, Correction)}
    reviewed = [not corrections.isdisjoint(example.sources) for example in examples]
    exempt = {n for n, by_reviewer in enumerate(reviewed) if by_reviewer and not settings.cap_reviewers}
    messages = cluster(list(map(_said, examples)), settings.cluster_similarity)
    behind = list(_behind(batch, examples))
    found = suspicious(examples, behind, rehearsed, _served(batch, examples), settings, batch.young, exempt)
    reasons = dict.fromkeys(found.held, DropReason.SUSPICIOUS_LIFT)
    reasons |= dict.fromkeys(
        _young_alone(batch, examples, behind, messages, _heard(batch, examples, rehearsed)), DropReason.YOUNG_ACCOUNTS
    )
    reasons |= dict.fromkeys(_below_quorum(batch, examples, reviewed), DropReason.NO_PAIR_QUORUM)
    reasons |= dict(_same_click(batch, examples, reasons))
    drops = [_drop(examples[n], reason) for n, reason in sorted(reasons.items())]
    left = [n for n in range(len(examples)) if n not in reasons]
    weights, shares, balance = _weighed(batch, examples, left, messages, exempt)
    kept = [_weighing(examples[n], weights[n]) for n in left]
    people = {user for example in examples for user in example.users}
    return Vetted(
        kept,
        drops,
        TrustReport(
            people=len(people),
            young=len(people & batch.young),
            young_share=round(_young_share(batch, kept), _DIGITS),
            shares=tuple(shares),
            balance=balance,
            lifts=found.lifts,
        ),
    )


def _subjects(batch: Batch, drafts: Sequence[Draft]) -> Iterator[tuple[str, ...]]:
    """What each draft is about, all of which is capped: the cluster of its question, and the topic if one is named.

    Never the named topic alone: whoever sends the interaction names it.
    """
    asked = [last_user_text(draft.example.prompt) for draft in drafts]
    clusters = cluster(asked, batch.trust.cluster_similarity)
    for draft, place in zip(drafts, clusters, strict=True):
        named = (batch.interactions[name].metadata.get("topic") for name in sorted(draft.interactions))
        topic = next((topic for topic in named if isinstance(topic, str) and topic), None)
        yield (f"question {place}",) if topic is None else (f"question {place}", f"topic {topic}")


def _behind(batch: Batch, examples: Sequence[Example]) -> Iterator[frozenset[str]]:
    """Who is for the reply that each example teaches: whoever only blames the other reply of a pair is not."""
    clicks = {stored.event.id: stored.event for stored in batch.events if references(stored.event)}
    for example in examples:
        said = [clicks[name] for name in example.sources if name in clicks]
        blaming = [isinstance(event, Thumb) and event.value < 0 for event in said]
        blamers = {batch.voice(event) for event, blames in zip(said, blaming, strict=True) if blames}
        others = {batch.voice(event) for event, blames in zip(said, blaming, strict=True) if not blames}
        yield frozenset(example.users) - (blamers - others if taught(example) is not None else frozenset())


def _young_alone(
    batch: Batch,
    examples: Sequence[Example],
    behind: Sequence[frozenset[str]],
    messages: Sequence[int],
    heard: Iterable[tuple[str, str]],
) -> Iterator[int]:
    """Examples of a message that only young accounts stand behind, and enough of them to look like one hand.

    Not where the message is known from what was `heard` (person, reply): what is said anyway, such as a greeting, is
    praised by many.
    """
    settings = batch.trust
    groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        groups[taught(example) is not None, messages[position]].append(position)
    for key, positions in list(groups.items()):
        people = frozenset().union(*(behind[position] for position in positions))
        if not people <= batch.young or len(people) < settings.young_alone_from:
            del groups[key]
    said: dict[int, list[str]] = defaultdict(list)
    for (_, message), positions in groups.items():
        said[message] += (_said(examples[position]) for position in positions)
    anyway = known(said, heard, settings.cluster_similarity, settings.known_people)
    for (_, message), positions in groups.items():
        if message not in anyway:
            yield from positions


def _same_click(
    batch: Batch, examples: Sequence[Example], reasons: Mapping[int, DropReason]
) -> Iterator[tuple[int, DropReason]]:
    """What else a held pair of two replies gave: a rephrasing blames the first reply too, and falls with its pair."""
    held: dict[str, list[tuple[set[str], DropReason]]] = defaultdict(list)
    for n, why in reasons.items():
        if isinstance(examples[n], PairExample):
            for name in examples[n].sources:
                held[name].append((set(examples[n].sources), why))
    for position, example in enumerate(examples):
        names = set(example.sources)
        if position not in reasons and taught(example) is None and len(names & batch.interactions.keys()) > 1:
            reason = next((why for sources, why in held.get(example.sources[0], ()) if names <= sources), None)
            if reason is not None:
                yield position, reason


def _below_quorum(batch: Batch, examples: Sequence[Example], reviewed: Sequence[bool]) -> Iterator[int]:
    quorum = batch.trust.pair_quorum
    for position, example in enumerate(examples):
        bound_by_it = quorum > 1 and isinstance(example, PairExample) and not reviewed[position]
        if bound_by_it and len(set(example.users) - batch.young) < quorum:
            yield position


def _heard(batch: Batch, examples: Sequence[Example], rehearsed: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """(person, reply) of older accounts: what they were served, or were behind in earlier increments."""
    yield from ((user, reply) for user, reply in _served(batch, examples) if user not in batch.young)
    yield from ((user, _said(old)) for old in rehearsed for user in old.users if user not in batch.young)


def _served(batch: Batch, examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """(user, reply) of the interactions that no example teaches."""
    used = {name for example in examples if taught(example) is not None for name in example.sources}
    return ((served.user, served.reply) for name, served in batch.interactions.items() if name not in used)


def _weighed(
    batch: Batch, examples: Sequence[Example], left: Sequence[int], messages: Sequence[int], exempt: set[int]
) -> tuple[dict[int, float], list[Share], Balance | None]:
    """The weight of each example that is left, kind by kind, and what was done to get there."""
    settings, weights = batch.trust, dict[int, float]()
    shares: list[Share] = []
    balance = None
    for kind in KINDS:
        places = [n for n in left if examples[n].kind == kind]
        before = [examples[n].weight for n in places]
        said = [None if n in exempt else messages[n] for n in places]
        backers = [set() if n in exempt else set(examples[n].users) for n in places]
        people = carriers(before, [names - batch.young or names for names in backers])
        scaled = partial(
            capped_both,
            messages=said,
            people=people,
            message_share=settings.cluster_share,
            user_share=settings.user_share,
        )
        if kind == "unpaired":
            good = [isinstance(example := examples[n], UnpairedExample) and example.desirable for n in places]
            voices = _fewest(batch, [examples[n] for n in places], good)
            ratio = settings.max_imbalance if voices >= settings.balance_people else math.inf
            after = balanced(before, good, ratio, scaled)
            balance = _balance(before, after, good, settings.max_imbalance, voices) if places else None
        else:
            after = scaled(before)
        shares += _share(kind, "people", people, before, after, settings.user_share)
        shares += _share(kind, "messages", said, before, after, settings.cluster_share)
        weights |= dict(zip(places, after, strict=True))
    return weights, shares, balance


def _fewest(batch: Batch, examples: Sequence[Example], good: Sequence[bool]) -> int:
    """How many people, young accounts aside, are on the side of praise or of blame that has fewer of them."""
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for example, is_good in zip(examples, good, strict=True):
        sides[is_good].update(example.users)
    return min(len(people - batch.young) for people in sides.values())


def _share(
    kind: Kind,
    of: str,
    holders: Sequence[str | None] | Sequence[int | None],
    before: Sequence[float],
    after: Sequence[float],
    share: float,
) -> Iterator[Share]:
    groups = len({holder for holder, weight in zip(holders, before, strict=True) if holder is not None and weight > 0})
    if groups:
        shares = [round(largest(weights, holders), _DIGITS) for weights in (before, after)]
        cap = round(bound(share, groups), _DIGITS)
        yield Share(kind=kind, of=of, groups=groups, cap=cap, before=shares[0], after=shares[1])


def _balance(
    before: Sequence[float], after: Sequence[float], good: Sequence[bool], limit: float, people: int
) -> Balance:
    was, now = ([round(total, _DIGITS) for total in sides(weights, good)] for weights in (before, after))
    return Balance(
        desirable=was[0],
        undesirable=was[1],
        desirable_after=now[0],
        undesirable_after=now[1],
        limit=limit,
        people=people,
    )


def _young_share(batch: Batch, examples: Sequence[Example]) -> float:
    whole = math.fsum(example.weight for example in examples)
    young = math.fsum(
        example.weight * len(batch.young.intersection(example.users)) / len(example.users)
        for example in examples
        if example.users
    )
    return young / whole if whole else 0.0


def _weighing(example: Example, weight: float) -> Example:
    """`example` at this weight; itself where nothing scaled it."""
    if math.isclose(weight, example.weight, rel_tol=1e-9):
        return example
    return example.model_copy(update={"weight": round(weight, _DIGITS)})


def _said(example: Example) -> str:
    """The reply that an example is about: the one it teaches, or the one that it teaches not to give."""
    return taught(example) or example.texts[0]


def _drop(example: Example, reason: DropReason) -> Drop:
    return Drop(kind=example.kind, reason=reason, sources=example.sources, users=example.users)
