"""Corrections: what reviewers agree on becomes SFT examples and pairs, and overrules thumbs on the same reply."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from incremental_llm.chat import Message
from incremental_llm.dataset.batch import Batch, Drafts
from incremental_llm.dataset.dedup import normalised, prompt_key, same_statement, spoken
from incremental_llm.dataset.examples import PairExample, SftExample
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.feedback.events import Correction


class AcceptedCorrection(BaseModel):
    """A correction that became training data: `content` is right and `rejected` (the reply it corrects) is wrong.

    `rejected` is empty where the reply may not be kept, such as for personal data in it. `reviewers` are all who wrote
    this content for this prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: str
    interaction_id: str
    prompt: tuple[Message, ...]
    content: str
    rejected: str
    reviewers: tuple[str, ...]


class Verdicts:
    """Which replies to which prompts reviewers have called right and wrong, now and in earlier increments."""

    def __init__(self, accepted: Iterable[AcceptedCorrection]) -> None:
        self._now = _Side()
        self._earlier = _Side()
        for one in accepted:
            self._earlier.settle(prompt_key(one.prompt), [one.content], [one.rejected])

    def settle(self, prompt: object, right: Sequence[str], wrong: Sequence[str]) -> None:
        """Reviewers of this batch say of a prompt that these replies are right and those wrong."""
        self._now.settle(prompt, right, wrong)

    def contradicts_accepted(self, prompt: object, content: str) -> bool:
        """Whether an earlier accepted correction of the same prompt says something else."""
        known = self._earlier.right.get(prompt)
        return bool(known) and spoken(content) not in (known or ())

    def objection(self, prompt: object, *, praised: str | None = None, blamed: str | None = None) -> DropReason | None:
        """Why a user's verdict cannot stand beside the reviewers' one; None when it can."""
        if self._now.objects(prompt, praised, blamed):
            return DropReason.CONTRADICTS_CORRECTION
        if self._earlier.objects(prompt, praised, blamed):
            return DropReason.CONTRADICTS_ACCEPTED
        return None

    def allows_inferred(self, prompt: object, reply: str) -> bool:
        """Whether `reply` may count as good without anyone having said so: not where reviewers wrote another one."""
        known = self._now.right.get(prompt, set()) | self._earlier.right.get(prompt, set())
        return not known or spoken(reply) in known


class _Side:
    """What was said of prompts, as `spoken` has it: equal for equal statements."""

    def __init__(self) -> None:
        self.right: dict[object, set[tuple[str, ...]]] = {}
        self.wrong: dict[object, set[tuple[str, ...]]] = {}

    def settle(self, prompt: object, right: Sequence[str], wrong: Sequence[str]) -> None:
        self.right.setdefault(prompt, set()).update(map(spoken, right))
        self.wrong.setdefault(prompt, set()).update(map(spoken, wrong))

    def objects(self, prompt: object, praised: str | None, blamed: str | None) -> bool:
        right = self.right.get(prompt, ())
        if praised is not None and spoken(praised) in self.wrong.get(prompt, ()) and spoken(praised) not in right:
            return True
        return blamed is not None and spoken(blamed) in right


def draft_corrections(
    batch: Batch, accepted: Sequence[AcceptedCorrection]
) -> tuple[Drafts, Verdicts, list[AcceptedCorrection]]:
    """Drafts from corrections, the verdicts that bind all other signals, and the corrections that won.

    Corrections of the same prompt are settled by distinct reviewers, each counting with the last content they gave: a
    content that more than half of them gave wins. Without one, all are dropped.
    """
    drafts = Drafts()
    verdicts = Verdicts(one for one in accepted if batch.gone.isdisjoint((one.event_id, one.interaction_id)))
    won: list[AcceptedCorrection] = []
    by_prompt: dict[object, list[Correction]] = defaultdict(list)
    for event in batch.live(Correction):
        prompt = batch.reply_key(event.interaction)[0]
        if verdicts.contradicts_accepted(prompt, event.content):
            drafts.drop(event, DropReason.CONTRADICTS_ACCEPTED, event.reviewer)
        else:
            by_prompt[prompt].append(event)
    for prompt, events in by_prompt.items():
        winners = _settled(events, drafts)
        replies = [batch.interactions[event.interaction].reply for event in winners or _last_of_each(events)]
        proposed = {spoken(event.content) for event in winners or events}
        verdicts.settle(
            prompt,
            right=[event.content for event in winners],
            wrong=[reply for reply in replies if spoken(reply) not in proposed],
        )
        won += _made(batch, winners, drafts)
    return drafts, verdicts, won


def _settled(events: Sequence[Correction], drafts: Drafts) -> list[Correction]:
    """The corrections of one prompt that hold, by time; the others are dropped with their reason.

    Reviewers whose accounts are young count as all others do: an operator gave them their key.
    """
    last = {event.reviewer: event for event in events}
    standing = []
    for event in events:
        if same_statement(event.content, last[event.reviewer].content):
            standing.append(event)
        else:
            drafts.drop(event, DropReason.REPLACED, event.reviewer)
    camps: dict[tuple[str, ...], list[Correction]] = defaultdict(list)
    for event in standing:
        camps[spoken(event.content)].append(event)
    quorum = [camp for camp in camps.values() if 2 * len({event.reviewer for event in camp}) > len(last)]
    for camp in camps.values():
        if not quorum or camp is not quorum[0]:
            for event in camp:
                drafts.drop(event, DropReason.OUTVOTED if quorum else DropReason.NO_QUORUM, event.reviewer)
    return quorum[0] if quorum else []


def _last_of_each(events: Sequence[Correction]) -> list[Correction]:
    return list({event.reviewer: event for event in events}.values())


def _made(batch: Batch, winners: Sequence[Correction], drafts: Drafts) -> list[AcceptedCorrection]:
    """Drafts for the corrections that hold, reviewers who gave the same text for one reply together."""
    reviewers = tuple(sorted({event.reviewer for event in winners}))
    by_reply: dict[tuple[str, str], list[Correction]] = defaultdict(list)
    for event in winners:
        by_reply[event.interaction, normalised(event.content)].append(event)
    for (interaction, _), events in by_reply.items():
        _draft_one(batch, interaction, events, drafts)
    return [
        AcceptedCorrection(
            event_id=event.id,
            interaction_id=event.interaction,
            prompt=batch.interactions[event.interaction].messages,
            content=event.content,
            rejected=batch.interactions[event.interaction].reply,
            reviewers=reviewers,
        )
        for event in winners
    ]


def _draft_one(batch: Batch, interaction: str, events: Sequence[Correction], drafts: Drafts) -> None:
    served, content = batch.interactions[interaction], events[0].content
    sources = (interaction, *sorted(event.id for event in events))
    users = tuple(sorted({event.reviewer for event in events}))
    weight = batch.settings.weights.correction
    right = SftExample(prompt=served.messages, completion=content, weight=weight, sources=sources, users=users)
    drafts.made.append(batch.draft(right, "correction"))
    if normalised(content) == normalised(served.reply):
        drafts.drops.append(Drop(kind="pair", reason=DropReason.SAME_REPLY, sources=sources, users=users))
        return
    better = PairExample(
        prompt=served.messages, chosen=content, rejected=served.reply, weight=weight, sources=sources, users=users
    )
    drafts.made.append(batch.draft(better, "correction"))
