"""Orders and draws that policies are made of: by ticket, by age, by weight, and in equal shares of groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count as counting
from typing import TypeVar

from incremental_llm.replay.item import ReplayItem
from incremental_llm.replay.night import Choice, LogWeights, Night, Order, ticket
from incremental_llm.replay.shares import balanced_quotas, reservoir, subset

K = TypeVar("K", int, str)

SMALLEST_PRIORITY = 0.01
"""Added to every priority, so that none has no chance at all (epsilon in Schaul et al. 2016)."""


def by_ticket(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
    """The smallest ticket first: a uniform sample of everything ever seen."""
    return [item for _, item in sorted(zip(_tickets(items, night), items, strict=True), key=lambda pair: pair[0])]


def _tickets(items: Sequence[ReplayItem], night: Night) -> list[float]:
    """The items' tickets; for this once, one for each item that holds none."""
    generator = night.generator("tokens", night.kind)
    return [ticket(generator) if item.ticket is None else item.ticket for item in items]


def newest_first(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
    """The newest increment first, and within one the smallest ticket."""
    return sorted(by_ticket(items, night), key=lambda item: -item.increment)


def uniformly(pool: Sequence[ReplayItem], count: int, night: Night) -> list[ReplayItem]:
    """At most `count` of the pool, each as likely as the others."""
    return night.tonights().sample(pool, min(count, len(pool)))


def weighted_order(log_weights: LogWeights) -> Order:
    """A weighted sample without replacement of everything ever seen: the smallest -ln(ticket) / weight first."""

    def order(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
        keys = _keys(_tickets(items, night), log_weights(items, night))
        return [items[position] for position in sorted(range(len(items)), key=keys.__getitem__)]

    return order


def weighted_draw(log_weights: LogWeights) -> Choice:
    """The same with fresh tickets: each night sees others."""

    def draw(pool: Sequence[ReplayItem], count: int, night: Night) -> list[ReplayItem]:
        generator = night.tonights()
        keys = _keys([ticket(generator) for _ in pool], log_weights(pool, night))
        return [pool[position] for position in sorted(range(len(pool)), key=keys.__getitem__)[:count]]

    return draw


def _keys(tickets: Sequence[float], log_weights: Sequence[float]) -> list[float]:
    """ln(-ln(ticket) / weight): in logarithms, so that a weight of 2 ** -5000 is one too."""
    return [math.log(-math.log(t)) - weight for t, weight in zip(tickets, log_weights, strict=True)]


def decayed(items: Sequence[ReplayItem], night: Night) -> list[float]:
    """ln(2 ** (-age / half-life)) of each item."""
    decay = {i: -night.age(i) * math.log(2) / night.settings.half_life for i in {item.increment for item in items}}
    return [decay[item.increment] for item in items]


def decayed_by_increment(items: Sequence[ReplayItem], night: Night) -> list[float]:
    """An increment's whole weight, 2 ** (-age / half-life) for each example that it offered, on those that are held.

    Those that have left already were the decay so far: without this, it would count twice.
    """
    survived = {i: night.held[i] / max(night.seen.get(i, 0), night.held[i]) for i in night.held}
    plain = decayed(items, night)
    return [weight - math.log(survived[item.increment]) for weight, item in zip(plain, items, strict=True)]


def prioritised(items: Sequence[ReplayItem], night: Night) -> list[float]:
    """exponent * ln(priority + SMALLEST_PRIORITY); what was never measured has the highest loss that was."""
    setting = night.settings.priority
    measured: list[float | None] = [_PRIORITIES[setting.by](item) for item in items]
    highest = max((value for value in measured if value is not None), default=1.0)
    values = [highest if value is None else value for value in measured]
    return [setting.exponent * math.log(value + SMALLEST_PRIORITY) for value in values]


_PRIORITIES: Mapping[str, Callable[[ReplayItem], float | None]] = {
    "loss": lambda item: item.loss,
    "flips": lambda item: float(item.flipped),
}


# Equal shares of groups

Group = Callable[[ReplayItem, Night], K]


def by_group(items: Iterable[ReplayItem], group: Callable[[ReplayItem], K]) -> dict[K, list[ReplayItem]]:
    """Items by their group, in the order of the groups' names."""
    grouped: dict[K, list[ReplayItem]] = defaultdict(list)
    for item in items:
        grouped[group(item)].append(item)
    return dict(sorted(grouped.items()))


def in_turn(group: Group[K]) -> Order:
    """The first of each group, then the second of each; the last group is asked first, as odd places go to it."""

    def order(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
        grouped = by_group(by_ticket(items, night), lambda item: group(item, night))
        turns = [entry for held in reversed(list(grouped.values())) for entry in zip(counting(), held, strict=False)]
        return [item for _, item in sorted(turns, key=lambda entry: entry[0])]

    return order


def in_shares(group: Group[K]) -> Choice:
    """Equal shares of the groups, uniform within each."""

    def draw(pool: Sequence[ReplayItem], count: int, night: Night) -> list[ReplayItem]:
        grouped = by_group(pool, lambda item: group(item, night))
        quotas = balanced_quotas({name: len(held) for name, held in grouped.items()}, count)
        generator = night.tonights()
        return [item for name, quota in quotas.items() for item in generator.sample(grouped[name], quota)]

    return draw


def shrunk_evenly(items: Sequence[ReplayItem], size: int, night: Night) -> list[ReplayItem]:
    """Equal shares of the increments: the one taken in is sampled by reservoir, older ones shrink at random."""
    grouped = by_group(items, increment)
    quotas = balanced_quotas({i: len(held) for i, held in grouped.items()}, size)
    kept: list[ReplayItem] = []
    for i, held in grouped.items():
        if night.taken is None:
            kept += subset(held, quotas[i], night.generator("capacity", night.kind, i))
        elif i == night.taken:
            kept += reservoir(held, quotas[i], night.generator("reservoir", night.kind, i))
        else:
            kept += subset(held, quotas[i], night.generator("shrink", night.kind, night.taken, i))
    return kept


def increment(item: ReplayItem, night: Night | None = None) -> int:
    """The increment that an item came from."""
    return item.increment


def topic(item: ReplayItem, night: Night) -> str:
    """The topic of an item; "" for all that name none."""
    return night.facts.topic(item.example)


def nothing(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
    """An order in which nothing stays."""
    return []
