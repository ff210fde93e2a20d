"""One increment's events, looked up and cleared of what is superseded; and the examples while they are being made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from incremental_llm.dataset.dedup import normalised, prompt_key, same_statement
from incremental_llm.dataset.examples import Example, Kind
from incremental_llm.dataset.filters import Filters
from incremental_llm.dataset.reasons import SEVERITY, Drop, DropReason
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.dataset.voices import Side, winner
from incremental_llm.feedback.events import (
    Abandon,
    Copy,
    Correction,
    Event,
    Interaction,
    PolicyChange,
    Preference,
    Ranking,
    Rephrase,
    Thumb,
    references,
)
from incremental_llm.feedback.exploration import is_held_out
from incremental_llm.feedback.serving import serving_of
from incremental_llm.feedback.store import StoredEvent

if TYPE_CHECKING:
    from incremental_llm.dataset.corrections import AcceptedCorrection

_NO_TIME = datetime.min.replace(tzinfo=UTC)  # of an event of an unknown type

ReplyKey = tuple[object, str]
"""Equal for equal replies to equal prompts: (prompt key, normalised reply)."""

E = TypeVar("E", bound=Event)

_WOULD_BE: dict[type, tuple[Kind, ...]] = {
    Thumb: ("unpaired",),
    Correction: ("sft", "pair"),
    Preference: ("pair",),
    Rephrase: ("pair", "unpaired"),
    Ranking: ("pair",),
    Copy: ("unpaired",),
    Abandon: ("unpaired",),
}


@dataclass(frozen=True)
class Draft:
    """An example as one signal gave it: where in the batch it belongs, and from which interactions its texts are.

    `inverse` is the capped inverse of the chance with which its replies were served, None where none was logged.
    """

    example: Example
    order: int
    interactions: frozenset[str]
    signal: str
    inverse: float | None = None


@dataclass
class Drafts:
    """What a signal gave: drafts, and drops for what it did not give."""

    made: list[Draft] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def drop(self, event: Event, reason: DropReason, user: str) -> None:
        """Record every example that `event` would have become."""
        self.drops += would_be_drops(event, reason, user)

    def extend(self, other: Drafts) -> None:
        self.made += other.made
        self.drops += other.drops


def would_be_drops(event: Event, reason: DropReason, user: str) -> list[Drop]:
    """A drop for each kind of example that a feedback event would have become."""
    sources = (*references(event), event.id)
    return [Drop(kind=kind, reason=reason, sources=sources, users=(user,)) for kind in _WOULD_BE[type(event)]]


class Batch:
    """The events of an increment in order of time and id, whatever order they came in, with what they refer to.

    `named` are the ids that this batch's policy changes supersede, with those of `accepted` corrections that said the
    same of the same prompt: it is a truth that ends, not one reviewer's record of it. `gone` are these and the ones
    superseded before; `barred` are all ids that nothing can stand on, with the reason. `young` are the people whose
    accounts are young; reviewers never are: an operator gave them their key.
    """

    def __init__(
        self,
        events: Iterable[StoredEvent],
        context: Mapping[str, StoredEvent],
        superseded: frozenset[str],
        settings: CompileSettings,
        filters: Filters,
        accepted: Sequence[AcceptedCorrection] = (),
        young: frozenset[str] = frozenset(),
    ) -> None:
        self.events = tuple(sorted(events, key=time_and_id))
        self.settings = settings
        self.trust = settings.trust.in_effect
        reviewers = {one.reviewer for one in self._of(Correction)} | {one.reviewer for one in self._of(PolicyChange)}
        self.young = young - reviewers if self.trust.enabled else frozenset()
        self.place = {stored.event.id: place for place, stored in enumerate(self.events)}
        everything = [*(stored.event for stored in context.values()), *(stored.event for stored in self.events)]
        self.interactions = {event.id: event for event in everything if isinstance(event, Interaction)}
        self.refused_changes = {c.id for c in self._of(PolicyChange) if not settings.may_change_policy(c.reviewer)}
        named = {name for c in self._of(PolicyChange) if c.id not in self.refused_changes for name in c.supersedes}
        self.named = frozenset(named | _same_truth(named, accepted))
        self.gone = self.named | superseded
        self.barred = dict.fromkeys(self.gone, DropReason.SUPERSEDED)
        for name, served in self.interactions.items():
            held_out = is_held_out(served.conversation, settings.held_out_share, settings.held_out_salt)
            reason = DropReason.HELD_OUT if held_out else filters.prompt_reason(served.messages)
            if reason is not None:
                self.barred.setdefault(name, reason)
        for event in everything:
            if not settings.weights.of(event):  # what trains nothing does not stand against what does
                self.barred.setdefault(event.id, DropReason.NO_WEIGHT)
        self._keys: dict[str, ReplyKey] = {}

    def _of(self, *kinds: type[E]) -> list[E]:
        return [stored.event for stored in self.events if isinstance(stored.event, kinds)]

    def live(self, *kinds: type[E]) -> list[E]:
        """Events of some types that can become examples, by time, then id."""
        return [event for event in self._of(*kinds) if self.is_live(event)]

    def is_live(self, event: Event) -> bool:
        """Whether an event can become examples: nothing that it stands on is barred or missing."""
        names = references(event)
        return self.barred.keys().isdisjoint((event.id, *names)) and all(name in self.interactions for name in names)

    def barred_drops(self) -> list[Drop]:
        """Drops for all feedback without weight, on something superseded, or on a prompt that no example may have."""
        drops: list[Drop] = []
        for event in (stored.event for stored in self.events if type(stored.event) in _WOULD_BE):
            reasons = [self.barred[name] for name in (event.id, *references(event)) if name in self.barred]
            if reasons:
                drops += would_be_drops(event, min(reasons, key=SEVERITY.__getitem__), self.voice(event))
        return drops

    def voice(self, event: Event) -> str:
        """Who speaks in an event; for a rephrase whoever asked."""
        match event:
            case Thumb() | Preference() | Interaction() | Ranking() | Copy() | Abandon():
                return event.user
            case Correction() | PolicyChange():
                return event.reviewer
            case Rephrase():
                first = self.interactions.get(event.interaction)
                return first.user if first else ""
            case _:
                return ""

    def winner(self, sides: Mapping[Side, Collection[str]]) -> Side | None:
        """Which side of a conflict wins by its distinct people; None where none has the margin."""
        return winner(sides, self.young, self.trust.conflict_margin, self.trust.young_weight)

    def reply_key(self, interaction: str) -> ReplyKey:
        """The key of an interaction's reply."""
        if interaction not in self._keys:
            served = self.interactions[interaction]
            self._keys[interaction] = (prompt_key(served.messages), normalised(served.reply))
        return self._keys[interaction]

    def order(self, sources: Iterable[str]) -> int:
        """Where in the batch an example belongs: at the first of its sources in this batch."""
        return min((self.place[name] for name in sources if name in self.place), default=0)

    def draft(self, example: Example, signal: str) -> Draft:
        """`example` with its place in the batch, and how its replies came to be served."""
        names = [name for name in example.sources if name in self.interactions]
        serving = tuple(filter(None, (serving_of(self.interactions[name].metadata) for name in names)))
        example = example.model_copy(update={"serving": serving}) if serving else example
        return Draft(example, self.order(example.sources), frozenset(names), signal)


def time_and_id(stored: StoredEvent) -> tuple[datetime, str]:
    """The order in which events count, whatever order they came in."""
    return stored.event.time or _NO_TIME, stored.event.id


def _same_truth(named: Collection[str], accepted: Sequence[AcceptedCorrection]) -> set[str]:
    """Ids of accepted corrections that say of the same prompt what one says that is named, by its id or its reply's."""
    ended: dict[object, list[str]] = defaultdict(list)
    for correction in accepted:
        if correction.event_id in named or correction.interaction_id in named:
            ended[prompt_key(correction.prompt)].append(correction.content)
    return {
        correction.event_id
        for correction in accepted
        if any(same_statement(correction.content, said) for said in ended.get(prompt_key(correction.prompt), ()))
    }
