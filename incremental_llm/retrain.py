"""Full retraining: all that the log holds, from the base, in the place of every adapter.

It is what an increment is compared with, and a way to make one adapter of many by training instead of by summing them.

The one design fact: a retraining is an increment that starts lower. It reads events from the first one on, stands on no
adapter and on an empty buffer, and is compiled, measured, judged and committed by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

from incremental_llm.config import RunConfig
from incremental_llm.dataset import Example
from incremental_llm.errors import NothingToTrainError
from incremental_llm.feedback import FeedbackStore, StoredEvent
from incremental_llm.feedback.events import UnknownEvent
from incremental_llm.feedback.pseudonyms import is_tombstone
from incremental_llm.pending import (
    Pending,
    accepted_corrections,
    batch_end,
    check_same_log,
    context_of,
    left_out,
    young_among,
)
from incremental_llm.registry import Registry, Snapshot, consumed, increments_in
from incremental_llm.replay import Facts, ReplayBuffer, ReplaySettings


def read_all(registry: Registry, store: FeedbackStore, config: RunConfig, until: int | None = None) -> Pending:
    """Read production and every event of the log that counts, up to `until`, by default `batch_end`.

    Policy changes are among the events and end what they name. Corrections that production stands on keep their
    force: what contradicts one needs a policy change, as on the night it came.

    Raises:
        NothingToTrainError: neither new feedback nor a second adapter to take the place of, or a retraining on these
            events was rejected already.
    """
    attempts = registry.attempts()
    check_same_log(registry, store, attempts)
    head, out = registry.head(), left_out(registry)
    until = batch_end(store, config) if until is None else until
    log = (stored for stored in store.read(after=0, until=until) if not is_tombstone(stored.event))
    events = tuple(stored for stored in log if stored.seq not in out)
    adapters = len(head.stack.adapters)
    if not any(stored.seq > head.cursor for stored in events) and adapters < 2:
        raise NothingToTrainError(
            f"no new feedback since production v{head.version}, whose stack has {adapters} adapter"
            f"{'' if adapters == 1 else 's'}: expected new events, or several adapters that retraining could make one "
            "of. Import some: illm feedback import FILE."
        )
    judged = {stored.seq for stored in events if not isinstance(stored.event, UnknownEvent)}
    if any(attempt.parent == head.version and judged <= set(attempt.seqs) for attempt in attempts):
        raise NothingToTrainError(
            f"training on all {len(events)} events was rejected against production v{head.version}, and no feedback "
            "has come since. It is tried again with new feedback, whatever the recipe: import some, then run again."
        )
    return retraining_from(registry, store, config, head, events, until)


def retraining_from(
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    head: Snapshot,
    events: tuple[StoredEvent, ...],
    until: int,
) -> Pending:
    """What a retraining in the place of the version `head` starts from, with these events up to `until`."""
    context = context_of(events, store)
    return Pending(
        head=head,
        below=head.stack.model_copy(update={"adapters": ()}),
        events=events,
        context=context,
        changes=(),
        buffer=ReplayBuffer().under(config.replay, config.training.seed, Facts({})),
        accepted=accepted_corrections(registry, head),
        until=until,
        young=young_among(events, context, store, config),
    )


def renewed(
    buffer: ReplayBuffer,
    examples: Sequence[Example],
    number: int,
    todo: Pending,
    registry: Registry,
    seed: int,
    settings: ReplaySettings,
    facts: Facts,
) -> ReplayBuffer:
    """`buffer` with the run's examples, each under the increment that brought its last event.

    That is `number`, the version about to be made, for all that production has not seen; after a retraining the older
    ones stand under their own increments again, and have their equal shares.
    """
    seqs, snapshots = {stored.event.id: stored.seq for stored in todo.events}, registry.list()
    seen = {version: consumed(snapshots, version) for version in increments_in(snapshots, todo.head.version)}
    by_increment: dict[int, list[Example]] = {number: []}
    for example in examples:
        last = max((seqs[name] for name in example.sources if name in seqs), default=0)
        brought = next((version for version, places in seen.items() if last in places), number)
        by_increment.setdefault(brought, []).append(example)
    for increment, brought_by_it in sorted(by_increment.items()):
        buffer = buffer.updated(brought_by_it, increment, seed, settings, facts)
    return buffer
