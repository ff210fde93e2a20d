"""What the next increment starts from, and what it must not do: production, the events since, what is no longer true.

Everything here reads; a run that is refused here has changed nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from jinja2 import TemplateError

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids, special_texts
from incremental_llm.adapters.stack import Stack
from incremental_llm.chat import Conversation
from incremental_llm.config import RunConfig
from incremental_llm.dataset import (
    AcceptedCorrection,
    CompiledDataset,
    DropReason,
    Example,
    SuiteIndex,
    Unfit,
    compile_dataset,
    opponents,
)
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.evaluation import Suite, all_passages
from incremental_llm.feedback import FeedbackStore, StoredEvent
from incremental_llm.feedback.events import PolicyChange, UnknownEvent, references
from incremental_llm.feedback.pseudonyms import is_tombstone
from incremental_llm.gate import suites_by_role
from incremental_llm.gate.feasible import check_suites
from incremental_llm.registry import Attempt, Registry, Snapshot, consumed, has_new_feedback, increments_in
from incremental_llm.replay import POLICIES, Facts, Mixture, ReplayBuffer
from incremental_llm.uncollected import uncollected


@dataclass(frozen=True)
class Pending:
    """What the next increment starts from: production, the events since, and what is no longer true.

    `replayed` are the events that the buffer's items stand on, by id, where the recipe's replay asks for them.
    `young` are the people of the batch whose accounts are young by its end.
    `below` is the stack that its adapter is trained on: production's, or for a retraining the base alone.
    """

    head: Snapshot
    below: Stack
    events: tuple[StoredEvent, ...]
    context: dict[str, StoredEvent]
    changes: tuple[PolicyChange, ...]
    buffer: ReplayBuffer
    accepted: tuple[AcceptedCorrection, ...]
    until: int
    replayed: dict[str, StoredEvent] = field(default_factory=dict)
    young: frozenset[str] = frozenset()

    @property
    def facts(self) -> Facts:
        """What is known of the examples, old and new, beyond their texts."""
        return Facts({**self.replayed, **self.context, **{stored.event.id: stored for stored in self.events}})

    @property
    def superseded(self) -> frozenset[str]:
        """Ids that earlier policy changes named."""
        return frozenset(name for change in self.changes for name in change.supersedes)

    @property
    def has_new(self) -> bool:
        """Whether there are events that production has not seen."""
        return any(stored.seq > self.head.cursor for stored in self.events)


@uncollected()
def read_pending(registry: Registry, store: FeedbackStore, config: RunConfig, until: int | None = None) -> Pending:
    """Read production and every event since that is not quarantined, up to `until`, by default `batch_end`.

    Raises:
        NothingToTrainError: no new feedback, or none since the last attempt on the same events was rejected.
    """
    attempts = registry.attempts()
    check_same_log(registry, store, attempts)
    head = registry.head()
    quarantined = registry.quarantined()
    until = batch_end(store, config) if until is None else until
    since = tuple(stored for stored in store.read(after=head.cursor, until=until) if not is_tombstone(stored.event))
    events = tuple(stored for stored in since if stored.seq not in quarantined)
    if not events:
        found = f"all {len(since)} events since are quarantined, see `illm registry quarantine`" if since else ""
        if waiting := store.head() - max(until, head.cursor):
            found = f"{waiting} events wait until they are {config.compile.trust.quarantine_hours:g} hours in the log"
        raise NothingToTrainError(
            f"no new feedback since production v{head.version}: "
            f"{found or f'it has seen event {head.cursor} of {until}'}. Import some: illm feedback import FILE."
        )
    judged = [stored.seq for stored in events if not isinstance(stored.event, UnknownEvent)]
    if attempts and not has_new_feedback(judged, attempts):
        raise NothingToTrainError(
            f"the last attempt on these {len(events)} events was rejected, and no feedback has come since. A batch is "
            "tried once more, together with new feedback, whatever the recipe: import some, then run again."
        )
    return pending_from(registry, store, config, head, events, until)


def pending_from(
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    head: Snapshot,
    events: tuple[StoredEvent, ...],
    until: int,
) -> Pending:
    """What an increment on the version `head` starts from, with these events, the last of them at most at `until`."""
    stored = _stored_buffer(registry, head)
    sources = {name for item in stored.items for name in item.example.sources} if config.replay.reads_events else ()
    replayed = store.get(sorted(sources))
    context = context_of(events, store)
    return Pending(
        head=head,
        below=head.stack,
        events=events,
        context=context,
        changes=policy_changes(store, head.cursor, config, left_out(registry)),
        buffer=stored.under(config.replay, config.training.seed, Facts(replayed)),
        accepted=accepted_corrections(registry, head),
        until=until,
        replayed=replayed,
        young=young_among(events, context, store, config),
    )


def context_of(events: Sequence[StoredEvent], store: FeedbackStore) -> dict[str, StoredEvent]:
    """What these events refer to and do not hold themselves, by id."""
    own = {stored.event.id for stored in events}
    missing = {name for stored in events for name in references(stored.event)} - own
    return store.get(sorted(missing))


def batch_end(store: FeedbackStore, config: RunConfig) -> int:
    """The last event that a batch may hold: the last one, or the last that has been in the log for long enough."""
    hours = config.compile.trust.in_effect.quarantine_hours
    return store.last_seq_at(datetime.now(UTC) - timedelta(hours=hours)) if hours else store.head()


def young_among(
    events: Sequence[StoredEvent], context: Mapping[str, StoredEvent], store: FeedbackStore, config: RunConfig
) -> frozenset[str]:
    """The people of a batch whose accounts are young by its end, as the store's own clock tells."""
    if not events:
        return frozenset()
    everything = (stored.event for stored in (*events, *context.values()))
    said = [getattr(event, role, None) for event in everything for role in ("user", "reviewer")]
    age = timedelta(days=config.compile.trust.in_effect.young_days)
    return store.young_accounts({person for person in said if person}, events[-1].seq, age)


def check_same_log(registry: Registry, store: FeedbackStore, attempts: Sequence[Attempt]) -> None:
    """Refuse a feedback store that is not the one which the registry has read: its places would be skipped unread."""
    snapshots = registry.list()
    read = (s.version for s in snapshots if s.kind == "increment" and consumed(snapshots, s.version))
    version = max(read, default=None)  # a consolidation has read nothing
    seen = {
        **({f"version {version}": registry.events_of(version)} if version is not None else {}),
        **({f"attempt {attempts[-1].id[:8]}": registry.events_of_attempt(attempts[-1].id)} if attempts else {}),
    }
    for made, sightings in seen.items():
        places = {one.event: one.seq for one in sightings if one.seq is not None}
        found = store.get(places)
        lost = [event for event, seq in places.items() if event not in found or found[event].seq != seq]
        if lost:
            raise InputError(
                f"feedback store {store.url}: expected the log that {made} was made from, found one without "
                f"{len(lost)} of its {len(places)} events, such as {lost[0]!r} at {places[lost[0]]}. Give back the old "
                "database (`database` in the recipe), or make a new workspace for the new one."
            )


def changes_in_effect(registry: Registry, store: FeedbackStore, config: RunConfig) -> tuple[PolicyChange, ...]:
    """The policy changes that production has seen.

    A rollback quarantines what it undoes; where production was moved back to such a version, its changes count again.
    """
    return policy_changes(store, registry.head().cursor, config, left_out(registry))


def left_out(registry: Registry) -> frozenset[int]:
    """Places of the events that count no more: all that is quarantined, but for what production stands on again."""
    snapshots = registry.list()
    standing = [consumed(snapshots, increment) for increment in increments_in(snapshots, registry.head().version)]
    return frozenset(
        q.seq for q in registry.quarantine() if q.attempt is not None or not any(q.seq in seqs for seqs in standing)
    )


def policy_changes(
    store: FeedbackStore, until: int, config: RunConfig, quarantined: Container[int]
) -> tuple[PolicyChange, ...]:
    """The policy changes up to a place in the log that count: by someone with the right to it, and not quarantined."""
    read = store.read(after=0, until=until, types=("policy_change",))
    return authorised((stored for stored in read if stored.seq not in quarantined), config)


def unknown_names(todo: Pending, store: FeedbackStore, config: RunConfig) -> tuple[str, ...]:
    """A note for each policy change of the batch that names events which are not in the log, and so ends nothing."""
    notes = []
    for change in authorised(todo.events, config):
        known = store.get(sorted(change.supersedes))
        unknown = [name for name in change.supersedes if name not in known]
        if unknown:
            notes.append(
                f"policy change {change.id} names {len(unknown)} events that are not in the log, such as "
                f"{unknown[0]!r}: it ends nothing there"
            )
    return tuple(notes)


def authorised(events: Iterable[StoredEvent], config: RunConfig) -> tuple[PolicyChange, ...]:
    """The policy changes among `events`, of reviewers with the right to them."""
    return tuple(
        stored.event
        for stored in events
        if isinstance(stored.event, PolicyChange) and config.compile.may_change_policy(stored.event.reviewer)
    )


def compile_pending(todo: Pending, config: RunConfig, questions: Sequence[str], tokenizer: Any) -> CompiledDataset:
    """What the pending events become for this base, without what the suites ask (`questions`) and hold."""
    return compile_dataset(
        todo.events,
        config.compile,
        context=todo.context,
        superseded=todo.superseded,
        accepted=still_true(todo.accepted, todo.superseded),
        suite_texts=questions,
        suite_passages=all_passages(config.suites.folder),
        young=todo.young,
        rehearsed=tuple(item.example for item in todo.buffer.items),
        policy_version=todo.head.version,
        unfit=unfit_for(tokenizer, config.training.max_length),
    )


def unfit_for(tokenizer: Any, max_length: int) -> Unfit:
    """What the tokenizer makes untrainable: a message that holds a special token, or more than `max_length` tokens.

    Left out when the dataset is made, so that such a text is counted with the others, and neither trained on nor kept
    as a correction that every later night would have to be measured on.
    """
    special = special_texts(tokenizer)

    def unfit(prompt: Conversation, reply: str) -> DropReason | None:
        if any(token in text for text in (*(message.content for message in prompt), reply) for token in special):
            return DropReason.SPECIAL_TOKEN
        try:
            length = len(prompt_ids(tokenizer, prompt)) + len(completion_ids(tokenizer, prompt, reply))
        except (TemplateError, InputError):
            return DropReason.NO_TEMPLATE
        return DropReason.TOO_MANY_TOKENS if length > max_length else None

    return unfit


@dataclass(frozen=True)
class Replayable:
    """The buffer as it stays, `tonight` without what tonight's feedback disputes, and in words what that left out."""

    kept: ReplayBuffer
    tonight: ReplayBuffer
    notes: tuple[str, ...]


def replayable(todo: Pending, dataset: CompiledDataset, config: RunConfig, questions: Sequence[str]) -> Replayable:
    """The buffer without what tonight's feedback ends or outvotes, what a suite asks by now and what has expired.

    Distinct people settle it, as among the events of one night: an example that reviewers contradict, or more users
    than stand behind it, leaves. One that fewer contradict, or as many, stays, and is only not rehearsed tonight. What
    users only did turns nothing that somebody said, and leaves for anybody who says otherwise.
    """
    index = SuiteIndex(questions, config.compile.suite_similarity)
    corrected = {correction.event_id for correction in dataset.corrections}
    reviewed = [example for example in dataset.examples if not corrected.isdisjoint(example.sources)]
    reviewers = opponents(reviewed)
    people = opponents(example for example in dataset.examples if not example.implicit)

    def outvoted(example: Example) -> bool:
        against = people(example)
        if example.implicit:
            return bool(against)
        return bool(reviewers(example)) or len(against) > len(set(example.users) - against)

    true, false = todo.buffer.without(dataset.superseded | todo.superseded)
    agreed, turned = true.without_contradicted(outvoted)
    unasked, asked = agreed.without_questions(index.__contains__)
    times = (stored.event.time for stored in todo.events)
    clock = datetime.now(UTC)  # what is later has a wrong time: one event of next year would make everything old
    now = max((time for time in times if time and time <= clock), default=None)
    kept, expired = unasked.without_expired(config.replay, todo.facts, now)
    tonight, disputed = kept.without_contradicted(lambda example: bool(people(example)))
    removed = (
        (false, "are no longer true"),
        (turned, "are judged otherwise by now"),
        (asked, "ask what a suite asks by now"),
        (expired, POLICIES[config.replay.kept_by].expiry),
    )
    said = " and ".join(f"{count} {why}" for count, why in removed if count)
    notes = (
        f"replayed examples leave the buffer: {said}" if said else "",
        f"{disputed} replayed examples are disputed tonight: they stay, and are not rehearsed" if disputed else "",
    )
    return Replayable(kept, tonight, tuple(filter(None, notes)))


def superseded_suites(suites: Sequence[Suite], changes: Iterable[PolicyChange]) -> tuple[str, ...]:
    """Suites whose truth one of these policy changes has ended."""
    named = {change.id for change in changes}
    return tuple(suite.name for suite in suites if named & set(suite.superseded_by))


def check_roles(registry: Registry, config: RunConfig, suites: Sequence[Suite], todo: Pending) -> tuple[str, ...]:
    """The superseded suites; refuses roles that contradict what is known, before anything is trained.

    Raises:
        InputError: a suite that production was judged on is named no more, two roles of a suite contradict, or the gate
            could not pass with these suites.
    """
    superseded = superseded_suites(suites, (*todo.changes, *authorised(todo.events, config)))
    roles = config.suites
    suites_by_role(
        new_suites=roles.new, old_suites=roles.old, superseded_suites=superseded, unguarded_suites=roles.watch
    )
    still = [name for name in roles.old if name not in superseded]
    check_suites({suite.name: len(suite.items) for suite in suites}, config.gate, roles.new, still)
    judged = registry.get_json(todo.head.recipe)["suites"] if todo.head.recipe else {"old": [], "new": []}
    dropped = [name for name in (*judged["old"], *judged["new"]) if name not in (*roles.names, *superseded)]
    if dropped:
        raise InputError(
            f"suites: production v{todo.head.version} was judged on {', '.join(dropped)}, which this recipe does not "
            "name: what it was taught could be lost unseen. Add it to suites.old, or to suites.watch to just see it."
        )
    return superseded


def check_phases(mixture: Mixture, config: RunConfig) -> None:
    """Raises NothingToTrainError where no phase has its `minimum` of examples, replayed ones included."""
    counts = {phase.objective: (len(mixture.of_kind(phase.kind)), phase.minimum) for phase in config.training.phases}
    if not any(found >= needed for found, needed in counts.values()):
        short = ", ".join(f"{name} has {found} of {needed}" for name, (found, needed) in counts.items())
        raise NothingToTrainError(
            f"expected a phase with its `minimum` of examples, found none: {short}. "
            "Collect more feedback, or lower `minimum` of a phase in training.phases."
        )


def still_true(accepted: Sequence[AcceptedCorrection], gone: frozenset[str]) -> tuple[AcceptedCorrection, ...]:
    """The corrections that stand on nothing superseded."""
    return tuple(c for c in accepted if not {c.event_id, c.interaction_id} & gone)


def accepted_corrections(registry: Registry, version: Snapshot) -> tuple[AcceptedCorrection, ...]:
    """The corrections that a version stands on."""
    stored = registry.get_json(version.corrections) if version.corrections else []
    return tuple(AcceptedCorrection.model_validate(item) for item in stored)


def _stored_buffer(registry: Registry, head: Snapshot) -> ReplayBuffer:
    if head.replay is None:
        return ReplayBuffer()
    return ReplayBuffer.read(registry.object_path(head.replay) / "buffer.json")
