"""Nights of the attacked log, compiled one after the other as nightly runs would, with and without trust controls."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from poison_log import ATTACKS, Attack, served, stored, thumb

from incremental_llm.chat import last_user_text
from incremental_llm.dataset import USED, CompiledDataset, CompileSettings, Example, compile_dataset
from incremental_llm.feedback import Event, StoredEvent, references
from incremental_llm.feedback.events import Interaction, Thumb

NIGHTS = 5
REPLAYED = 400  # examples that replay remembers


@dataclass
class Simulated:
    """A log that is compiled night after night; ages go by the events' times, which are true here."""

    settings: CompileSettings
    seed: int = 0
    seq: int = 0
    events: dict[str, StoredEvent] = field(default_factory=dict)
    first: dict[str, datetime] = field(default_factory=dict)
    rehearsed: list[Example] = field(default_factory=list)

    def remember(self, events: Sequence[Event]) -> list[StoredEvent]:
        batch = stored(events, self.seq)
        self.seq += len(batch)
        for one in batch:
            self.events[one.event.id] = one
            for role in ("user", "reviewer"):
                if (person := getattr(one.event, role, None)) is not None and one.event.time is not None:
                    self.first.setdefault(person, one.event.time)
        return batch

    def night(self, events: Sequence[Event]) -> CompiledDataset:
        batch = self.remember(events)
        own = {one.event.id for one in batch}
        missing = {name for one in batch for name in references(one.event)} - own
        dataset = compile_dataset(
            batch,
            self.settings,
            context={name: self.events[name] for name in missing},
            young=self.young(batch),
            rehearsed=self.rehearsed,
        )
        together = [*self.rehearsed, *dataset.examples]
        self.rehearsed = random.Random(self.seed).sample(together, min(REPLAYED, len(together)))
        return dataset

    def young(self, batch: Sequence[StoredEvent]) -> frozenset[str]:
        end, start = batch[-1].event.time, min(self.first.values())
        age = timedelta(days=self.settings.trust.young_days)
        if end is None or end - start < age:
            return frozenset()
        return frozenset(person for person, time in self.first.items() if time > end - age)

    def copy(self) -> Simulated:
        return replace(self, events=dict(self.events), first=dict(self.first), rehearsed=list(self.rehearsed))


@dataclass
class Reached:
    """What of an attacker's feedback became examples, over seeds."""

    sent: int = 0
    used: int = 0
    weight: float = 0.0
    whole: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, dataset: CompiledDataset, feedback: Collection[str]) -> None:
        for name in feedback:
            self.sent += 1
            self.used += dataset.account[name] == USED
            self.reasons[dataset.account[name]] += 1
        sent = set(feedback)
        for example in dataset.examples:
            share = sum(user.startswith("evil") for user in example.users) / len(example.users)
            if not share and not sent.isdisjoint(example.sources):  # said in another's name
                share = 1.0
            self.weight += share * example.weight
            self.whole += example.weight


Nights = Sequence[Sequence[Event]]


def clean(nights: Nights, settings: CompileSettings, seed: int) -> list[Simulated]:
    """The log before each night, without attackers' feedback; their aged accounts have said hello in the history."""
    start = nights[0][0].time
    assert start is not None
    log = Simulated(settings, seed)
    log.remember([*nights[0], *(_hello(f"evilaged{n}", start + timedelta(hours=n)) for n in range(60))])
    logs = [log.copy()]
    for night in nights[1:-1]:
        log.night(night)
        logs.append(log.copy())
    return logs


def attacked(
    name: str, share: float, seed: int, nights: Nights, logs: Sequence[Simulated], reached: Reached
) -> CompiledDataset:
    """The dataset of the last night that an attack goes through; all of them are added to `reached`."""
    make, aged, every_night = ATTACKS[name]
    rng = random.Random(f"{name} {share} {seed}")
    chosen = range(1, NIGHTS + 1) if every_night else [rng.randint(2, NIGHTS)]
    log = logs[chosen[0] - 1].copy()
    for number in chosen:
        night = nights[number]
        room = max(1, round(share / 100 * sum(event.type == "thumb" for event in night)))
        start, end = _last_day(night)
        interactions = [event for event in night if isinstance(event, Interaction)]
        questions = sorted({last_user_text(one.messages) for one in interactions})
        attack = Attack(
            f"{name}{number}", rng, start, end, questions, [one.reply for one in interactions], interactions
        )
        evil = make(attack, room, "evilaged" if aged else "evilnew")
        dataset = log.night([*night, *evil])
        reached.add(dataset, [event.id for event in evil if event.type != "interaction"])
    return dataset


def one_thumb(nights: Nights, log: Simulated, reached: Reached) -> None:
    """The last night without its thumbs down, and one of them by an old account on something made up."""
    start, end = _last_day(nights[-1])
    praise = [event for event in nights[-1] if not (isinstance(event, Thumb) and event.value < 0)]
    asked = served("x-one", start, "evilaged0", [{"role": "user", "content": "Are you honest?"}], "Always, and fair.")
    evil = thumb(asked.id, end, "evilaged0", -1)
    reached.add(log.copy().night([*praise, asked, evil]), [evil.id])


def weight_kept(one: Iterable[Example], other: Iterable[Example]) -> float:
    """How much of the loss weight of `one` is on the same examples in `other`, both brought to a total of 1.

    1 less their total variation distance: what is held or scaled goes to others, and counts once.
    """
    shares = []
    for examples in (one, other):
        weights: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        for example in examples:
            weights[example.id, example.sources] += example.weight
        whole = sum(weights.values())
        shares.append({name: weight / whole for name, weight in weights.items()} if whole else {})
    return sum(min(weight, shares[1].get(name, 0.0)) for name, weight in shares[0].items())


def _last_day(night: Sequence[Event]) -> tuple[datetime, datetime]:
    end = night[-1].time
    assert end is not None
    return end - timedelta(hours=20), end


def _hello(user: str, time: datetime) -> Event:
    return served(f"hello-{user}", time, user, [{"role": "user", "content": "hello there"}], "Hello! How are you?")


CONTROLS = {"without": CompileSettings.model_validate({"trust": {"enabled": False}}), "with": CompileSettings()}
