"""What few people, new ones or one message may not do: held examples, and weights under the caps of the settings.

    drafts -> within_topics -> (merged) -> vet -> examples that are left, drops for those that are held, a report

Everything is counted by distinct people. What is held is left out of this increment with a reason of its own; what is
only too much is scaled down.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from incremental_llm.chat import last_user_text
from incremental_llm.dataset.batch import Batch, Draft, Drafts
from incremental_llm.dataset.clusters import cluster
from incremental_llm.dataset.examples import KINDS, Example, Kind, PairExample, UnpairedExample
from incremental_llm.dataset.lift import suspicious, taught
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.dataset.shares import balanced, bound, capped_both, largest
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
    """Drafts but for those of users who have said as much on the topic as counts, the earliest first.

    A draft of several users stays while it is within the cap of one of them. Corrections are nobody's click, and stay.
    """
    cap, busy = batch.trust.user_topic_cap, Counter[str]()
    clicks = [draft for draft in drafts.made if draft.signal != "correction"]
    for draft in clicks:
        busy.update(draft.example.users)
    if max(busy.values(), default=0) <= cap:
        return drafts
    topics = dict(zip(map(id, clicks), _topics(batch, clicks), strict=True))
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    kept = Drafts(drops=list(drafts.drops))
    for draft in sorted(drafts.made, key=lambda draft: (draft.order, draft.example.sources)):
        if (topic := topics.get(id(draft))) is None:
            kept.made.append(draft)
            continue
        event = draft.example.sources[-1]
        own = [said[user, topic] for user in draft.example.users]
        if any(event in events or len(events) < cap for events in own):
            kept.made.append(draft)
            for events in own:
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
    known = _known(batch, examples, rehearsed)
    messages = cluster([*map(_said, examples), *known], settings.cluster_similarity)
    behind = list(_behind(batch, examples))
    found = suspicious(examples, behind, rehearsed, _served(batch, examples), settings, batch.young, exempt)
    reasons = dict.fromkeys(found.held, DropReason.SUSPICIOUS_LIFT)
    reasons |= dict.fromkeys(_young_alone(batch, examples, behind, messages), DropReason.YOUNG_ACCOUNTS)
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


def _topics(batch: Batch, drafts: Sequence[Draft]) -> Iterator[str]:
    """What each draft is about: the topic that its interaction names, or the cluster of its question."""
    asked = [last_user_text(draft.example.prompt) for draft in drafts]
    clusters = cluster(asked, batch.trust.cluster_similarity)
    for draft, place in zip(drafts, clusters, strict=True):
        named = (batch.interactions[name].metadata.get("topic") for name in sorted(draft.interactions))
        yield next((f"topic {topic}" for topic in named if isinstance(topic, str) and topic), f"question {place}")


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
    batch: Batch, examples: Sequence[Example], behind: Sequence[frozenset[str]], messages: Sequence[int]
) -> Iterator[int]:
    """Examples of a message that only young accounts stand behind, and enough of them to look like one hand.

    Not where the message is known (`messages` beyond those of the examples): what is said anyway, such as a greeting,
    is praised by many.
    """
    known = set(messages[len(examples) :])
    groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        groups[taught(example) is not None, messages[position]].append(position)
    for (_, message), positions in groups.items():
        if message in known:
            continue
        people = frozenset().union(*(behind[position] for position in positions))
        if people <= batch.young and len(people) >= batch.trust.young_alone_from:
            yield from positions


def _same_click(
    batch: Batch, examples: Sequence[Example], reasons: Mapping[int, DropReason]
) -> Iterator[tuple[int, DropReason]]:
    """What else a held pair of two replies gave: a rephrasing blames the first reply too, and falls with its pair."""
    held = [(set(examples[n].sources), reason) for n, reason in reasons.items() if isinstance(examples[n], PairExample)]
    for position, example in enumerate(examples):
        names = set(example.sources)
        if position not in reasons and taught(example) is None and len(names & batch.interactions.keys()) > 1:
            reason = next((why for sources, why in held if names <= sources), None)
            if reason is not None:
                yield position, reason


def _below_quorum(batch: Batch, examples: Sequence[Example], reviewed: Sequence[bool]) -> Iterator[int]:
    quorum = batch.trust.pair_quorum
    for position, example in enumerate(examples):
        bound_by_it = quorum > 1 and isinstance(example, PairExample) and not reviewed[position]
        if bound_by_it and len(set(example.users) - batch.young) < quorum:
            yield position


def _known(batch: Batch, examples: Sequence[Example], rehearsed: Sequence[Example]) -> list[str]:
    """Replies that older accounts were served or were behind in earlier increments."""
    heard = [reply for user, reply in _served(batch, examples) if user not in batch.young]
    return [*heard, *(_said(old) for old in rehearsed if not batch.young.issuperset(old.users))]


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
        before = [_young_factor(batch, examples[n]) * examples[n].weight for n in places]
        level = before
        good = [isinstance(example := examples[n], UnpairedExample) and example.desirable for n in places]
        if kind == "unpaired":
            level = balanced(before, good, settings.max_imbalance)
        clusters = [() if n in exempt else (messages[n],) for n in places]
        people = [() if n in exempt else examples[n].users for n in places]
        after = capped_both(level, clusters, people, settings.cluster_share, settings.user_share)
        shares += _share(kind, "people", people, level, after, settings.user_share)
        shares += _share(kind, "messages", clusters, level, after, settings.cluster_share)
        if kind == "unpaired" and places:
            balance = _balance(before, after, good)
        weights |= dict(zip(places, after, strict=True))
    return weights, shares, balance


def _young_factor(batch: Batch, example: Example) -> float:
    if not example.users:
        return 1.0
    share = len(batch.young.intersection(example.users)) / len(example.users)
    return 1 - (1 - batch.trust.young_weight) * share


def _share(
    kind: Kind,
    of: str,
    holders: Sequence[Sequence[str] | Sequence[int]],
    before: Sequence[float],
    after: Sequence[float],
    share: float,
) -> Iterator[Share]:
    groups = len({group for held in holders for group in held})
    if groups:
        shares = [round(largest(weights, holders), _DIGITS) for weights in (before, after)]
        cap = round(bound(share, groups), _DIGITS)
        yield Share(kind=kind, of=of, groups=groups, cap=cap, before=shares[0], after=shares[1])


def _balance(before: Sequence[float], after: Sequence[float], good: Sequence[bool]) -> Balance:
    def total(weights: Sequence[float], side: bool) -> float:
        return round(math.fsum(w for w, is_good in zip(weights, good, strict=True) if is_good is side), _DIGITS)

    return Balance(
        desirable=total(before, True),
        undesirable=total(before, False),
        desirable_after=total(after, True),
        undesirable_after=total(after, False),
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
