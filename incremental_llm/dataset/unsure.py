"""What a compile, or the model, was unsure about, as items for the review queue.

    unsure(dataset, events)        what people disagree on: ties, no quorum, narrow majorities, against accepted truth
    low_margin(pairs, events)      pairs of which the model hardly prefers one reply

Pure functions; who calls them puts the result into a `ReviewQueue`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from incremental_llm.chat import json_digest
from incremental_llm.dataset.compiled import CompiledDataset
from incremental_llm.dataset.dedup import normalised, prompt_key
from incremental_llm.dataset.examples import PairExample
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.feedback.events import Correction, Event, Interaction, Preference, Ranking, Rephrase, Thumb
from incremental_llm.feedback.review import Proposal, Voice
from incremental_llm.feedback.store import StoredEvent

UNSURE = frozenset(
    {
        DropReason.CONFLICT,
        DropReason.NO_QUORUM,
        DropReason.CONTRADICTS_ACCEPTED,
        DropReason.OUTVOTED,
        DropReason.NO_PAIR_QUORUM,
        DropReason.YOUNG_ACCOUNTS,
        DropReason.SUSPICIOUS_LIFT,
    }
)
"""The reasons that a person could settle; of OUTVOTED only narrow majorities are. A reason that is added to a compile
and means "perhaps" has its place here."""

Question = tuple[str, object]
"""What a drop is about: ("correction", prompt), ("thumb", prompt and reply) or ("pair", prompt and both replies)."""


@dataclass
class _Dispute:
    """All drops on one question; `first` is the reply it is about, and `second` the other one of a pair."""

    reason: DropReason
    first: Interaction
    second: Interaction | None = None
    voices: dict[Voice, None] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)


def unsure(dataset: CompiledDataset, events: Iterable[StoredEvent], narrow: int = 1) -> list[Proposal]:
    """An item for each question on which the compile left feedback out for a reason of UNSURE.

    `events` are those of the batch and those it refers to. A majority that leads by more than `narrow` people has
    settled it. The priority is 1 for a tie and falls with the lead: 1 - |a - b| / (a + b) for a against b people.
    """
    known = {stored.event.id: stored.event for stored in events}
    disputes: dict[Question, _Dispute] = {}
    for drop in dataset.drops:
        if drop.reason in UNSURE:
            _add(disputes, drop, known)
    sides = _sides(dataset)
    found = []
    for question, one in disputes.items():
        lead, total = _lead(one, sides.get(question, frozenset()))
        if one.reason is not DropReason.OUTVOTED or (question in sides and lead <= narrow):
            found.append(_proposal(question, one, known, 1 - lead / total))
    return found


def low_margin(
    pairs: Iterable[tuple[PairExample, float]], events: Iterable[StoredEvent], at_most: int
) -> list[Proposal]:
    """Items for the `at_most` pairs with the smallest margins in size.

    A margin is log p(chosen) - log p(rejected) of the model, in nats per token, and the priority is 1 at 0 and
    1 - tanh(|margin| / 2) elsewhere, which is twice the smaller of the two preferences under a logistic model.
    """
    known = {stored.event.id: stored.event for stored in events}
    ordered = sorted(pairs, key=lambda pair: (abs(pair[1]), pair[0].id))
    return [_pair_item(pair, margin, known) for pair, margin in ordered[:at_most] if math.isfinite(margin)]


def _add(disputes: dict[Question, _Dispute], drop: Drop, known: Mapping[str, Event]) -> None:
    for question, dispute in _questions(drop, known):
        one = disputes.setdefault(question, dispute)
        one.voices |= dispute.voices
        one.sources |= dict.fromkeys(drop.sources)


def _questions(drop: Drop, known: Mapping[str, Event]) -> Iterable[tuple[Question, _Dispute]]:
    """What one drop is about; nothing where its events are not at hand."""
    events = [known[name] for name in drop.sources if name in known]
    served = {event.id: event for event in events if isinstance(event, Interaction)}
    corrections = [event for event in events if isinstance(event, Correction) and event.interaction in served]
    for event in corrections:
        first = served[event.interaction]
        said = Voice(who=event.reviewer, says=event.content, text=True)
        yield ("correction", prompt_key(first.messages)), _Dispute(drop.reason, first, voices={said: None})
    if corrections:
        return
    thumbs = [event for event in events if isinstance(event, Thumb) and event.interaction in served]
    if drop.kind == "pair":
        yield from _pair_questions(drop, events, served, thumbs)
    elif drop.kind == "unpaired":
        for thumb in thumbs:
            first = served[thumb.interaction]
            key = prompt_key(first.messages), normalised(first.reply)
            said = Voice(who=thumb.user, says="up" if thumb.value == 1 else "down")
            yield ("thumb", key), _Dispute(drop.reason, first, voices={said: None})


def _pair_questions(
    drop: Drop, events: Sequence[Event], served: Mapping[str, Interaction], thumbs: Sequence[Thumb]
) -> Iterable[tuple[Question, _Dispute]]:
    """A pair as its signal had it. Both sides of a dispute show the replies in one order, whoever prefers which."""
    if any(isinstance(event, Preference | Ranking) for event in events):  # its choices name the better reply first
        chosen, rejected = served.get(drop.sources[0]), served.get(drop.sources[1])
    elif thumbs:
        chosen = next((served[thumb.interaction] for thumb in thumbs if thumb.value == 1), None)
        rejected = next((served[thumb.interaction] for thumb in thumbs if thumb.value == -1), None)
    else:  # asked again: the second answer over the first
        asked = list(served.values())
        rephrase = next((event for event in events if isinstance(event, Rephrase)), None)
        first = rephrase.interaction if rephrase else (asked[0].id if asked else "")
        rejected = served.get(first)
        chosen = next((event for event in asked if event.id != first), None)
    if chosen is None or rejected is None:
        return
    left, right = sorted((chosen, rejected), key=lambda one: (normalised(one.reply), one.id))
    told = "the first is better" if chosen is left else "the second is better"
    key = prompt_key(rejected.messages), frozenset((normalised(chosen.reply), normalised(rejected.reply)))
    voices = {Voice(who=user, says=told): None for user in drop.users}
    yield ("pair", key), _Dispute(drop.reason, left, right, voices)


def _sides(dataset: CompiledDataset) -> dict[Question, set[str]]:
    """The people behind the examples that were made: who won each question, where somebody did."""
    won: dict[Question, set[str]] = defaultdict(set)
    for one in dataset.corrections:
        won["correction", prompt_key(one.prompt)].update(one.reviewers)
    for example in dataset.unpaired:
        won["thumb", (prompt_key(example.prompt), normalised(example.completion))].update(example.users)
    for pair in dataset.pairs:
        key = prompt_key(pair.prompt), frozenset((normalised(pair.chosen), normalised(pair.rejected)))
        won["pair", key].update(pair.users)
    return dict(won)


def _lead(dispute: _Dispute, won: Iterable[str]) -> tuple[int, int]:
    """(people by which the largest side leads the next, people in all); an accepted correction is one more of them."""
    camps: dict[str, set[str]] = defaultdict(set)
    for voice in dispute.voices:
        camps[normalised(voice.says) if voice.text else voice.says].add(voice.who)
    accepted = [1] if dispute.reason is DropReason.CONTRADICTS_ACCEPTED else []
    sizes = sorted([*map(len, camps.values()), len(set(won)), *accepted], reverse=True)
    return sizes[0] - sizes[1], sum(sizes)


def _proposal(question: Question, one: _Dispute, known: Mapping[str, Event], priority: float) -> Proposal:
    second = one.second
    kept = {served.id for served in (one.first, second) if served is not None}
    prompt = one.first.messages
    if second is not None and prompt_key(second.messages) != prompt_key(prompt):
        # A question asked again: the pair is about the first question, to which the second reply was not served.
        asked_first = min((one.first, second), key=lambda served: (served.time, served.id))
        prompt, kept = asked_first.messages, {asked_first.id}
    return Proposal(
        kind="conflict",
        reason=one.reason.value,
        prompt=prompt,
        reply=one.first.reply,
        other=None if second is None else second.reply,
        interaction=one.first.id if one.first.id in kept else None,
        other_interaction=second.id if second is not None and second.id in kept else None,
        voices=tuple(one.voices),
        sources=tuple(one.sources),
        authors=_people(one.sources, known),
        priority=priority,
        # What was settled once is asked again when people turn against it.
        about=json_digest([_plain(question), one.reason is DropReason.CONTRADICTS_ACCEPTED]),
    )


def _pair_item(pair: PairExample, margin: float, known: Mapping[str, Event]) -> Proposal:
    asked = prompt_key(pair.prompt)
    events = [known[name] for name in pair.sources if name in known]
    served = [event for event in events if isinstance(event, Interaction) and prompt_key(event.messages) == asked]
    at = {reply: next((s.id for s in served if s.reply == reply), None) for reply in (pair.chosen, pair.rejected)}
    told = Voice(who="the model", says=f"prefers the {'first' if margin >= 0 else 'second'} by {abs(margin):.3f}")
    return Proposal(
        kind="low_margin",
        reason="low_margin",
        prompt=pair.prompt,
        reply=pair.chosen,
        other=pair.rejected,
        interaction=at[pair.chosen],
        other_interaction=at[pair.rejected],
        voices=(told, *(Voice(who=user, says="the first is better") for user in pair.users)),
        sources=pair.sources,
        authors=_people(pair.sources, known),
        priority=1 - math.tanh(abs(margin) / 2),
    )


def _people(sources: Iterable[str], known: Mapping[str, Event]) -> tuple[str, ...]:
    """Everyone who speaks in these events."""
    found = {
        person
        for name in sources
        for person in (getattr(known.get(name), "user", None), getattr(known.get(name), "reviewer", None))
        if person is not None
    }
    return tuple(sorted(found))


def _plain(question: object) -> object:
    """A question as JSON; what has no order is sorted."""
    if isinstance(question, frozenset):
        return sorted(map(_plain, question), key=str)
    return [_plain(part) for part in question] if isinstance(question, tuple) else question
