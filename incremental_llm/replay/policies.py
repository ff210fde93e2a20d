"""Which examples stay in the buffer, and which of them are seen again tonight: a table of small pure functions.

    POLICIES["reservoir"].keep(items, size, night)      what stays, of items in the order of their arrival
    POLICIES["reservoir"].draw(pool, count, night)      what is seen again tonight, of what stayed

Most policies are one order: what stands first in it stays, however many fit. An order is made from tickets, uniform
random numbers that an item draws once and keeps, so that the best of everything ever seen can be kept night by night
without knowing what has left (Efraimidis & Spirakis 2006: the smallest -ln(ticket) / weight are a weighted sample
without replacement). Adding a policy is adding a line to the table; tests/replay/test_policies.py holds all of them to
the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from incremental_llm.dataset.examples import KINDS, Kind
from incremental_llm.replay import orders
from incremental_llm.replay.item import ReplayItem
from incremental_llm.replay.night import Choice, Night, Order, ticket
from incremental_llm.replay.settings import PolicyName, ReplaySettings


@dataclass(frozen=True)
class Policy:
    """`order` says what stays first, `draw` what is seen again.

    `choice` takes the place of `order` where the number to keep alone decides, as it always did. Without `tickets` no
    item holds one. Rows of other `kinds` are not replayed. `span` gives the increments after which an item leaves, and
    `expiry` says so of what has left.
    """

    order: Order
    draw: Choice
    choice: Choice | None = None
    tickets: bool = True
    kinds: tuple[Kind, ...] = KINDS
    span: Callable[[ReplaySettings], int | None] = lambda settings: None
    expiry: str = "are older than the recipe keeps them"

    def keep(self, items: Sequence[ReplayItem], size: int, night: Night) -> list[ReplayItem]:
        """At most `size` of `items`, within the recipe's tokens for the kind where `facts` counts them; in place.

        An example that does not fit any more is passed over, and shorter ones behind it in the order still may.
        """
        items = _entered(items, night) if self.tickets else [_without_ticket(item) for item in items]
        kept = self.choice(items, size, night) if self.choice else _in_place(items, self.order(items, night)[:size])
        room, length = night.settings.capacity_tokens.get(night.kind), night.facts.tokens
        if room is None or length is None:
            return kept
        fitting = []
        for item in self.order(kept, night):
            tokens = length(item.example)
            if tokens <= room:
                room -= tokens
                fitting.append(item)
        return _in_place(kept, fitting)


def _entered(items: Sequence[ReplayItem], night: Night) -> list[ReplayItem]:
    """Every item with a ticket.

    Items without one may be what another policy left of an increment: of the tickets of all that it offered they hold
    the smallest, as they would if they had been kept by ticket from the start.
    """
    lacking = orders.by_group((item for item in items if item.ticket is None), lambda item: item.increment)
    drawn: dict[int, list[float]] = {}
    for increment, group in lacking.items():
        generator = night.generator("ticket", night.kind, increment)
        offered = max(night.seen.get(increment, 0), len(group))
        drawn[increment] = sorted(ticket(generator) for _ in range(offered))[: len(group)]
        generator.shuffle(drawn[increment])
    return [
        item if item.ticket is not None else item.model_copy(update={"ticket": drawn[item.increment].pop()})
        for item in items
    ]


def _without_ticket(item: ReplayItem) -> ReplayItem:
    return item if item.ticket is None else item.model_copy(update={"ticket": None})


def _in_place(items: Sequence[ReplayItem], chosen: Iterable[ReplayItem]) -> list[ReplayItem]:
    """The chosen ones in the order of `items`."""
    wanted = {id(item) for item in chosen}
    return [item for item in items if id(item) in wanted]


POLICIES: Mapping[PolicyName, Policy] = {
    "reservoir_balanced": Policy(
        orders.in_turn(orders.increment),
        orders.in_shares(orders.increment),
        choice=orders.shrunk_evenly,
        tickets=False,
    ),
    "topic_balanced": Policy(orders.in_turn(orders.topic), orders.in_shares(orders.topic)),
    "reservoir": Policy(orders.by_ticket, orders.uniformly),
    "prioritised": Policy(orders.weighted_order(orders.prioritised), orders.weighted_draw(orders.prioritised)),
    "window": Policy(orders.newest_first, orders.uniformly, span=lambda settings: settings.window),
    "half_life": Policy(orders.weighted_order(orders.decayed), orders.weighted_draw(orders.decayed_by_increment)),
    "self_synthesised": Policy(
        orders.nothing,
        orders.uniformly,
        kinds=("sft",),
        span=lambda settings: 0,
        expiry="are feedback, of which the recipe keeps none",
    ),
}
"""What stays, what is drawn, and where that comes from:

reservoir_balanced: equal shares of the increments, each a uniform sample of what it offered (Vitter 1985, algorithm R),
    so that late nights do not crowd out early ones (Rebuffi et al. 2017; Chaudhry et al. 2019).
topic_balanced: equal shares of the topics, whatever came (class-balanced reservoir, Chrysakis & Moens 2020). Examples
    without a topic share one.
reservoir: uniform over all examples ever seen (Vitter 1985), as the smallest tickets of all. Room that forgotten
    examples leave is filled by the next nights' ones.
prioritised: a chance ~ priority ** exponent (Schaul et al. 2016). The priority is production's loss on the example, or
    whether it was forgotten (Toneva et al. 2019), measured on a random part of the buffer each night (as in Aljundi et
    al. 2019).
window: the last n increments, of which the newest stay first (Lin 1992; Mnih et al. 2015), drawn uniformly.
half_life: a chance to be kept and drawn that halves every h increments (forward decay, Cormode et al. 2009).
self_synthesised: no user text is kept; production writes the rows itself (Huang et al. 2024), the questions included
    (Xu et al. 2024).
"""
