"""From a batch of events to examples: prompt filters, signals, conflicts, reply filters, duplicates, trust, account.

A pure function of its arguments: the same events give the same dataset, in whatever order they are handed over or came
into the log.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from incremental_llm.chat import Conversation
from incremental_llm.dataset.batch import Batch, Draft
from incremental_llm.dataset.compiled import USED, CompiledDataset
from incremental_llm.dataset.corrections import AcceptedCorrection, draft_corrections
from incremental_llm.dataset.decontaminate import SuiteIndex
from incremental_llm.dataset.dedup import exact_key, group_meaning, group_near
from incremental_llm.dataset.embeddings import first_alike
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.dataset.filters import Filters
from incremental_llm.dataset.implicit import draft_implicit
from incremental_llm.dataset.privacy import Redaction
from incremental_llm.dataset.propensity import merged_inverse, normalise, weigh
from incremental_llm.dataset.reasons import SEVERITY, Drop, DropReason
from incremental_llm.dataset.rephrases import draft_rephrases
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.dataset.signals import draft_preferences, draft_thumbs, settle_pairs
from incremental_llm.dataset.trust import vet, within_topics
from incremental_llm.dataset.voices import backing
from incremental_llm.feedback.events import Event, Interaction, PolicyChange, UnknownEvent
from incremental_llm.feedback.store import StoredEvent
from incremental_llm.uncollected import uncollected

Unfit = Callable[[Conversation, str], DropReason | None]
"""Why the model cannot be trained on a reply to a conversation, as its tokenizer sees them; None when it can."""


@uncollected()
def compile_dataset(
    events: Iterable[StoredEvent],
    settings: CompileSettings,
    *,
    context: Mapping[str, StoredEvent] | None = None,
    superseded: frozenset[str] = frozenset(),
    accepted: Sequence[AcceptedCorrection] = (),
    suite_texts: Sequence[str] = (),
    suite_passages: Sequence[str] = (),
    young: frozenset[str] = frozenset(),
    rehearsed: Sequence[Example] = (),
    policy_version: int | None = None,
    unfit: Unfit = lambda prompt, reply: None,
) -> CompiledDataset:
    """The dataset of one increment.

    `context` holds older events that new ones refer to, by id. `superseded` are ids that earlier policy changes named;
    nothing that stands on one of them or on one that this batch names becomes an example. `accepted` are the
    corrections of earlier increments: the same prompt is not corrected to anything else without a policy change.
    `suite_texts` are the questions of the suites, which are left out, and so is what shares 13 words in a row with them
    or with `suite_passages`, the suites' other texts. `young` are the people whose accounts are young, `rehearsed` are
    examples of earlier increments that replay holds: see `trust`. `policy_version` is production's: no reply can be of
    a later one. `unfit` knows the tokenizer; this stage does not.
    """
    suites = SuiteIndex(suite_texts, settings.suite_similarity, suite_passages)
    filters = Filters(settings, suites)
    redaction, around = Redaction(settings), Redaction(settings)
    events = [redaction.of(stored) for stored in events]
    known = {name: around.of(stored) for name, stored in (context or {}).items()}
    batch = Batch(events, known, superseded, settings, filters, accepted, young)
    drafts, verdicts, won = draft_corrections(batch, accepted)
    thumbs, users = draft_thumbs(batch, verdicts)
    drafts.extend(thumbs)
    drafts.extend(draft_rephrases(batch, verdicts, users))
    drafts.extend(draft_preferences(batch, verdicts))
    drafts.extend(draft_implicit(batch, verdicts, users, drafts.made))
    drafts = within_topics(batch, settle_pairs(batch, drafts))
    drops = [*batch.barred_drops(), *drafts.drops]

    kept: list[Draft] = []
    for draft in sorted(drafts.made, key=_place):
        reason = _reply_reason(filters, unfit, draft.example.prompt, draft.example.texts)
        if reason is None:
            kept.append(draft)
        else:
            drops.append(_drop(draft, reason))
    kept, weighting = weigh(kept, batch, policy_version)
    vetted = vet(batch, _merged(kept, batch, drops), rehearsed)
    examples, drops = vetted.examples, [*drops, *vetted.drops]
    trained = {name for example in examples if isinstance(example, SftExample) for name in example.sources}
    account = _account(batch, examples, drops)
    return CompiledDataset(
        sft=tuple(e for e in examples if isinstance(e, SftExample)),
        pairs=tuple(e for e in examples if isinstance(e, PairExample)),
        unpaired=tuple(e for e in examples if isinstance(e, UnpairedExample)),
        drops=tuple(sorted(drops, key=lambda drop: (drop.kind, drop.reason, batch.order(drop.sources), drop.sources))),
        corrections=tuple(
            c
            if _reply_reason(filters, unfit, c.prompt, [c.rejected]) is None
            else c.model_copy(update={"rejected": ""})
            for c in sorted(won, key=lambda c: batch.place[c.event_id])
            if c.event_id in trained
        ),
        account=account,
        redacted=dict(sorted(redaction.counts.items())),
        outcomes=_outcomes(batch, account),
        first_seq=min((stored.seq for stored in batch.events), default=0),
        last_seq=max((stored.seq for stored in batch.events), default=0),
        superseded=batch.named,
        trust=vetted.report,
        settings=settings,
        weighting=weighting,
    )


def _reply_reason(filters: Filters, unfit: Unfit, prompt: Conversation, replies: Sequence[str]) -> DropReason | None:
    return filters.reply_reason(replies) or next(filter(None, (unfit(prompt, reply) for reply in replies)), None)


def _place(draft: Draft) -> tuple[int, str, tuple[str, ...]]:
    return draft.order, draft.example.kind, draft.example.sources


def _drop(draft: Draft, reason: DropReason) -> Drop:
    example = draft.example
    return Drop(kind=example.kind, reason=reason, sources=example.sources, users=example.users)


def _merged(drafts: Sequence[Draft], batch: Batch, drops: list[Drop]) -> list[Example]:
    """One example for each group of duplicates, with the group's sources, users and weight.

    The first text stays. A repeat that brings texts of other interactions is counted as dropped; several signals about
    the same reply are not repeats.
    """
    exact: dict[tuple[object, ...], list[Draft]] = defaultdict(list)
    for draft in drafts:
        exact[exact_key(draft.example)].append(draft)
    groups = list(exact.values())
    first, reasons = _firsts([group[0].example for group in groups], batch.settings)
    near: dict[int, list[Draft]] = defaultdict(list)
    brought: dict[int, set[str]] = defaultdict(set)
    for original, reason, group in zip(first, reasons, groups, strict=True):
        for draft in group:
            if near[original] and brought[original].isdisjoint(draft.interactions):
                drops.append(_drop(draft, reason))
            near[original].append(draft)
            brought[original] |= draft.interactions
    spoken = [_spoken(group) for group in near.values()]
    merged = [_one(group, said, batch) for group, said in zip(near.values(), spoken, strict=True)]
    return normalise(merged, [merged_inverse(said) for said in spoken])


def _firsts(examples: Sequence[Example], settings: CompileSettings) -> tuple[list[int], list[DropReason]]:
    """For each example the position of the one that it repeats, and what a further draft of it is then."""
    near = group_near(examples)
    first, model = list(near), settings.duplicate_embeddings
    if model is not None:
        alone = [position for position, original in enumerate(near) if original == position]
        alike = partial(first_alike, model, least=settings.duplicate_cosine_min)
        meant = group_meaning([examples[position] for position in alone], alike)
        known = {position: alone[match] for position, match in zip(alone, meant, strict=True)}
        first = [known[original] for original in near]
    return first, [_repeat(*places) for places in zip(range(len(examples)), near, first, strict=True)]


def _repeat(position: int, near: int, first: int) -> DropReason:
    if near != position:
        return DropReason.NEAR_DUPLICATE
    return DropReason.DUPLICATE if first == position else DropReason.SEMANTIC_DUPLICATE


def _spoken(group: Sequence[Draft]) -> list[Draft]:
    """What somebody said, all where nobody did: who only did something gives no words more weight."""
    return [draft for draft in group if not draft.example.implicit] or list(group)


def _one(group: Sequence[Draft], said: Sequence[Draft], batch: Batch) -> Example:
    users = tuple(sorted({user for draft in group for user in draft.example.users}))
    sources = tuple(dict.fromkeys(name for draft in group for name in draft.example.sources))
    voices = {user for draft in said for user in draft.example.users}
    step, cap = batch.settings.user_weight_step, batch.settings.user_weight_cap
    factor = backing(voices, batch.young, batch.trust.young_weight, step, cap)
    weight = max(draft.example.weight for draft in said) * factor
    together: dict[str, object] = {"users": users, "sources": sources, "weight": weight}
    together["serving"] = tuple(dict.fromkeys(one for draft in group for one in draft.example.serving))
    together["implicit"] = all(draft.example.implicit for draft in group)
    return group[0].example.model_copy(update=together)


def _account(batch: Batch, examples: Iterable[Example], drops: Iterable[Drop]) -> dict[str, str]:
    """Every event of the batch once: used, or why not."""
    used = {name for example in examples for name in example.sources}
    reasons: dict[str, DropReason] = {}
    for drop in drops:
        for name in drop.sources:
            if name not in reasons or SEVERITY[drop.reason] < SEVERITY[reasons[name]]:
                reasons[name] = drop.reason
    return {stored.event.id: _outcome(stored.event, batch, used, reasons) for stored in batch.events}


def _outcome(event: Event, batch: Batch, used: set[str], reasons: Mapping[str, DropReason]) -> str:
    if isinstance(event, PolicyChange):
        return DropReason.NOT_AUTHORISED.value if event.id in batch.refused_changes else USED
    if isinstance(event, UnknownEvent):
        return "unknown_type"
    if event.id in used:
        return USED
    if event.id in batch.gone:
        return DropReason.SUPERSEDED.value
    if event.id in reasons:
        return reasons[event.id].value
    return "no_feedback" if isinstance(event, Interaction) else "missing_interaction"


def _outcomes(batch: Batch, account: Mapping[str, str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for stored in batch.events:
        counted[stored.event.type][account[stored.event.id]] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in sorted(counted.items())}
