"""Thumbs, preferences and rankings: what users said becomes unpaired examples and pairs."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from incremental_llm.dataset.batch import Batch, Draft, Drafts, ReplyKey
from incremental_llm.dataset.choices import Choice, choices
from incremental_llm.dataset.corrections import Verdicts
from incremental_llm.dataset.dedup import normalised, prompt_key
from incremental_llm.dataset.examples import PairExample, UnpairedExample
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.feedback.events import Correction, Thumb

Verdict = dict[ReplyKey, int]
"""What users say of a reply: 1 good, -1 bad, 0 where neither has the margin."""


def draft_thumbs(batch: Batch, verdicts: Verdicts) -> tuple[Drafts, Verdict]:
    """Unpaired examples from thumbs, pairs from an up and a down on one prompt, and the users' verdicts.

    Every user has one voice on a reply, the last one; distinct users settle it, and
    without the margin all are dropped.
    """
    drafts = Drafts()
    thumbs = _counting(batch, drafts)
    by_reply: dict[ReplyKey, list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        prompt, _ = key = batch.reply_key(thumb.interaction)
        reply = batch.interactions[thumb.interaction].reply
        praised, blamed = (reply, None) if thumb.value == 1 else (None, reply)
        reason = verdicts.objection(prompt, praised=praised, blamed=blamed)
        if reason is None:
            by_reply[key].append(thumb)
        else:
            drafts.drop(thumb, reason, thumb.user)
    verdict_of: Verdict = {}
    standing: dict[ReplyKey, list[Thumb]] = {}
    for key, votes in by_reply.items():
        verdict_of[key] = _majority(votes, batch)
        standing[key] = [thumb for thumb in votes if thumb.value == verdict_of[key]]
        for thumb in votes:
            if thumb.value != verdict_of[key]:
                lost = DropReason.OUTVOTED if verdict_of[key] else DropReason.CONFLICT
                drafts.drop(thumb, lost, thumb.user)
        unpaired = list(_unpaired(batch, standing[key]))
        if batch.settings.weights.thumb:
            drafts.made += unpaired
        else:
            drafts.drops += [_without_weight(draft) for draft in unpaired]
    _draft_thumb_pairs(batch, {k: votes for k, votes in standing.items() if votes}, drafts)
    return drafts, verdict_of


def draft_preferences(batch: Batch, verdicts: Verdicts) -> Drafts:
    """A pair for each choice between two replies to the same prompt, of preferences and rankings."""
    drafts = Drafts()
    counted: dict[tuple[object, ...], Choice] = {}
    valid = []
    for event in choices(batch):
        reason = _preference_problem(batch, event, verdicts)
        if reason is None:
            valid.append(event)
            counted[event.user, _pair_key(batch, event)] = event  # the last one stands
        else:
            drafts.drops.append(_not_chosen(event, reason))
    seen: set[tuple[str, str, str]] = set()
    for event in valid:
        last = counted[event.user, _pair_key(batch, event)]
        identity = (event.user, event.chosen, event.rejected)
        if batch.reply_key(event.chosen) != batch.reply_key(last.chosen):
            drafts.drops.append(_not_chosen(event, DropReason.REPLACED))
        elif identity in seen:
            drafts.drops.append(_not_chosen(event, DropReason.DUPLICATE))
        else:
            seen.add(identity)
            drafts.made.append(_preference_pair(batch, event))
    return drafts


def settle_pairs(batch: Batch, drafts: Drafts) -> Drafts:
    """Pairs of users that point in opposite directions, settled by distinct users; without the margin both fall.

    A rephrase whose pair falls loses its undesirable reply too. Corrections' pairs are not up for a vote.
    """
    sides: dict[object, dict[object, list[Draft]]] = defaultdict(lambda: defaultdict(list))
    for draft in drafts.made:
        example = draft.example
        if isinstance(example, PairExample) and draft.signal != "correction":
            chosen, rejected = normalised(example.chosen), normalised(example.rejected)
            sides[prompt_key(example.prompt), frozenset((chosen, rejected))][chosen].append(draft)
    lost: dict[tuple[str, tuple[str, ...]], DropReason] = {}
    for camps in sides.values():
        voices = {side: {user for draft in camp for user in draft.example.users} for side, camp in camps.items()}
        if len(voices) < 2:
            continue
        won = batch.winner(voices)
        for side, camp in camps.items():
            if side != won:
                reason = DropReason.CONFLICT if won is None else DropReason.OUTVOTED
                lost.update({(draft.signal, draft.example.sources): reason for draft in camp})
    settled = Drafts(drops=list(drafts.drops))
    for draft in drafts.made:
        example = draft.example
        reason_lost = lost.get((draft.signal, example.sources))
        if reason_lost is None:
            settled.made.append(draft)
        else:
            settled.drops.append(
                Drop(kind=example.kind, reason=reason_lost, sources=example.sources, users=example.users)
            )
    return settled


def _counting(batch: Batch, drafts: Drafts) -> list[Thumb]:
    """Thumbs that count: no one-sided user's, one voice a user and reply, within the user's cap."""
    settings = batch.settings
    thumbs = batch.live(Thumb)
    judged: dict[str, set[str]] = defaultdict(set)
    for thumb in thumbs:
        judged[thumb.user].add(thumb.interaction)
    pleased = {thumb.user for thumb in thumbs if thumb.value == 1}
    pleased |= {correction.reviewer for correction in batch.live(Correction)}  # says what is right, too
    last = {(thumb.user, batch.reply_key(thumb.interaction)): thumb for thumb in thumbs}
    last_click = {(thumb.user, thumb.interaction): thumb for thumb in thumbs}
    given: Counter[str] = Counter()
    counting = []
    for thumb in thumbs:
        if len(judged[thumb.user]) >= settings.one_sided_minimum and thumb.user not in pleased:
            drafts.drop(thumb, DropReason.ONE_SIDED_USER, thumb.user)
        elif thumb.value != last[thumb.user, batch.reply_key(thumb.interaction)].value:
            drafts.drop(thumb, DropReason.REPLACED, thumb.user)
        elif last_click[thumb.user, thumb.interaction] is not thumb:
            drafts.drop(thumb, DropReason.DUPLICATE, thumb.user)
        elif given[thumb.user] >= settings.user_thumb_cap:
            drafts.drop(thumb, DropReason.OVER_USER_CAP, thumb.user)
        else:
            given[thumb.user] += 1
            counting.append(thumb)
    return counting


def _majority(votes: Sequence[Thumb], batch: Batch) -> int:
    sides = {value: {thumb.user for thumb in votes if thumb.value == value} for value in (1, -1)}
    return batch.winner(sides) or 0


def _unpaired(batch: Batch, votes: Sequence[Thumb]) -> Iterator[Draft]:
    """One draft an interaction, from all users who judged it."""
    by_interaction: dict[str, list[Thumb]] = defaultdict(list)
    for thumb in votes:
        by_interaction[thumb.interaction].append(thumb)
    for interaction, thumbs in by_interaction.items():
        served = batch.interactions[interaction]
        example = UnpairedExample(
            prompt=served.messages,
            completion=served.reply,
            desirable=thumbs[0].value == 1,
            weight=batch.settings.weights.thumb,
            sources=(interaction, *sorted(thumb.id for thumb in thumbs)),
            users=tuple(sorted({thumb.user for thumb in thumbs})),
        )
        yield batch.draft(example, "thumb")


def _draft_thumb_pairs(batch: Batch, standing: Mapping[ReplyKey, Sequence[Thumb]], drafts: Drafts) -> None:
    weighty = batch.settings.weights.thumb_pair > 0
    most = batch.settings.prompt_pair_cap if weighty else 0
    reason = DropReason.OVER_PAIR_CAP if weighty else DropReason.NO_WEIGHT
    by_prompt: dict[object, dict[int, list[Sequence[Thumb]]]] = defaultdict(lambda: {1: [], -1: []})
    for (prompt, _), votes in standing.items():
        by_prompt[prompt][votes[0].value].append(votes)
    for sides in by_prompt.values():
        paired: set[str] = set()
        for up, down in itertools.islice(itertools.product(sides[1], sides[-1]), most):
            example = _thumb_pair(batch, up, down)
            drafts.made.append(batch.draft(example, "thumb_pair"))
            paired.update(example.sources)
        if sides[1] and sides[-1]:
            drafts.drops += [_unmatched(v, reason) for v in (*sides[1], *sides[-1]) if v[0].id not in paired]


def _without_weight(draft: Draft) -> Drop:
    example = draft.example
    return Drop(kind=example.kind, reason=DropReason.NO_WEIGHT, sources=example.sources, users=example.users)


def _unmatched(votes: Sequence[Thumb], reason: DropReason) -> Drop:
    """A reply that stands in no pair; not a drop for each pair that was not made, which grow with the square."""
    interactions = sorted({thumb.interaction for thumb in votes})
    return Drop(
        kind="pair",
        reason=reason,
        sources=(*interactions, *sorted(thumb.id for thumb in votes)),
        users=tuple(sorted({thumb.user for thumb in votes})),
    )


def _thumb_pair(batch: Batch, up: Sequence[Thumb], down: Sequence[Thumb]) -> PairExample:
    chosen, rejected = batch.interactions[up[0].interaction], batch.interactions[down[0].interaction]
    interactions = sorted({thumb.interaction for thumb in (*up, *down)})
    return PairExample(
        prompt=chosen.messages,
        chosen=chosen.reply,
        rejected=rejected.reply,
        weight=batch.settings.weights.thumb_pair,
        sources=(*interactions, *sorted(thumb.id for thumb in (*up, *down))),
        users=tuple(sorted({thumb.user for thumb in (*up, *down)})),
    )


def _not_chosen(event: Choice, reason: DropReason) -> Drop:
    return Drop(kind="pair", reason=reason, sources=event.sources, users=(event.user,))


def _pair_key(batch: Batch, event: Choice) -> object:
    return frozenset((batch.reply_key(event.chosen), batch.reply_key(event.rejected)))


def _preference_problem(batch: Batch, event: Choice, verdicts: Verdicts) -> DropReason | None:
    chosen, rejected = batch.reply_key(event.chosen), batch.reply_key(event.rejected)
    if chosen[0] != rejected[0]:
        return DropReason.DIFFERENT_PROMPTS
    if chosen[1] == rejected[1]:
        return DropReason.SAME_REPLY
    replies = batch.interactions[event.chosen].reply, batch.interactions[event.rejected].reply
    return verdicts.objection(chosen[0], praised=replies[0], blamed=replies[1])


def _preference_pair(batch: Batch, event: Choice) -> Draft:
    chosen = batch.interactions[event.chosen]
    example = PairExample(
        prompt=chosen.messages,
        chosen=chosen.reply,
        rejected=batch.interactions[event.rejected].reply,
        weight=event.weight,
        sources=event.sources,
        users=(event.user,),
    )
    return batch.draft(example, "preference")
