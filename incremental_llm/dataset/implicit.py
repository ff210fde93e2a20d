"""What users did rather than said: copied a reply, left at one, asked the same again word for word.

Nobody said anything, so such a signal weighs little and gives way: where a thumb, a correction, a preference or a
rephrasing judges the same reply, it is left out. Leaving is off by default: people leave because they have what they
wanted as well as because they gave up ("good abandonment", Li, Huffman & Tokuda 2009).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from incremental_llm.chat import last_user_text
from incremental_llm.dataset.batch import Batch, Draft, Drafts, ReplyKey
from incremental_llm.dataset.corrections import Verdicts
from incremental_llm.dataset.dedup import normalised, prompt_key
from incremental_llm.dataset.examples import UnpairedExample
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.feedback.events import Abandon, Copy, Interaction


@dataclass(frozen=True)
class Sign:
    """One thing that a user did about a reply; `sources` are the interactions and the event that show it."""

    interaction: str
    user: str
    good: bool
    weight: float
    sources: tuple[str, ...]


def draft_implicit(batch: Batch, verdicts: Verdicts, users: Collection[ReplyKey], made: Sequence[Draft]) -> Drafts:
    """Unpaired examples from copies, leavings and repeated questions.

    `users` are the replies that thumbs judge, `made` is what all other signals gave; what either judges is settled.
    Signs that point in opposite directions are settled by distinct users; a tie drops all.
    """
    drafts = Drafts()
    judged = {*users, *(key for draft in made for key in _judged(draft))}
    by_reply: dict[ReplyKey, list[Sign]] = defaultdict(list)
    given: Counter[str] = Counter()
    for sign in (*_events(batch), *_repeats(batch)):
        key = batch.reply_key(sign.interaction)
        reason = _problem(batch, sign, key, judged, verdicts)
        if reason is None and given[sign.user] >= batch.settings.user_thumb_cap:
            reason = DropReason.OVER_USER_CAP
        if reason is None:
            given[sign.user] += 1
            by_reply[key].append(sign)
        else:
            drafts.drops.append(_drop(sign, reason))
    for signs in by_reply.values():
        voices = {good: len({sign.user for sign in signs if sign.good == good}) for good in (True, False)}
        for good in (True, False):
            camp = [sign for sign in signs if sign.good == good]
            if voices[good] > voices[not good]:
                drafts.made += _unpaired(batch, camp)
            else:
                lost = DropReason.CONFLICT if voices[good] == voices[not good] else DropReason.OUTVOTED
                drafts.drops += [_drop(sign, lost) for sign in camp]
    return drafts


def _events(batch: Batch) -> Iterator[Sign]:
    weights = batch.settings.weights
    for event in batch.live(Copy, Abandon):
        if isinstance(event, Copy | Abandon):
            good = isinstance(event, Copy)
            weight = weights.copied if good else weights.abandoned
            yield Sign(event.interaction, event.user, good, weight, (event.interaction, event.id))


def _repeats(batch: Batch) -> Iterator[Sign]:
    """First replies to a question that the same user asked again in equal words, in the conversation and the window.

    The second reply has to say something else: whoever gets the same again may only have looked twice.
    """
    weight, window = batch.settings.weights.repeated, batch.settings.rephrase_window_seconds
    if not weight:
        return
    served: dict[tuple[str, str], list[Interaction]] = defaultdict(list)
    for interaction in batch.live(Interaction):
        served[interaction.user, interaction.conversation].append(interaction)
    for turns in served.values():
        for first, second in itertools.pairwise(turns):
            asked, again = (normalised(last_user_text(turn.messages)) for turn in (first, second))
            in_time = (second.time - first.time).total_seconds() <= window
            if in_time and asked == again and normalised(first.reply) != normalised(second.reply):
                yield Sign(first.id, first.user, False, weight, (first.id, second.id))


def _judged(draft: Draft) -> Iterator[ReplyKey]:
    prompt = prompt_key(draft.example.prompt)
    return ((prompt, normalised(text)) for text in draft.example.texts)


def _problem(
    batch: Batch, sign: Sign, key: ReplyKey, judged: Collection[ReplyKey], verdicts: Verdicts
) -> DropReason | None:
    if key in judged:
        return DropReason.SAID_OUTRIGHT
    reply = batch.interactions[sign.interaction].reply
    if not sign.good:
        return verdicts.objection(key[0], blamed=reply)
    if not verdicts.allows_inferred(key[0], reply):
        return DropReason.CONTRADICTS_CORRECTION
    return verdicts.objection(key[0], praised=reply)


def _unpaired(batch: Batch, signs: Sequence[Sign]) -> Iterator[Draft]:
    """One draft an interaction, from all users who did it."""
    by_interaction: dict[str, list[Sign]] = defaultdict(list)
    for sign in signs:
        by_interaction[sign.interaction].append(sign)
    for interaction, same in by_interaction.items():
        served = batch.interactions[interaction]
        example = UnpairedExample(
            prompt=served.messages,
            completion=served.reply,
            desirable=same[0].good,
            weight=max(sign.weight for sign in same),
            sources=tuple(dict.fromkeys(name for sign in same for name in sign.sources)),
            users=tuple(sorted({sign.user for sign in same})),
            implicit=True,
        )
        yield batch.draft(example, "implicit")


def _drop(sign: Sign, reason: DropReason) -> Drop:
    return Drop(kind="unpaired", reason=reason, sources=sign.sources, users=(sign.user,))
