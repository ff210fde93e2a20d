"""The loop, closed in one place: feedback in, a decision out.

    head of the registry -> events since -> dataset -> mixture -> adapter -> reports -> decision -> one commit

Stages are called with plain values; only this file commits. Every step leaves its result in the run's folder (named
after what decides it, see runs.py), so the same command continues a killed run.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.adapters.stack import Stack, adapter_paths
from incremental_llm.artifacts import is_complete, staged_folder, write_json
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import Conversation, as_dicts, canonical_json, json_digest
from incremental_llm.claims import KEPT, LEARNED, Claim, claim_of, fresh
from incremental_llm.config import RunConfig
from incremental_llm.dataset import USED, AcceptedCorrection, CompiledDataset, Example, SuiteIndex, represent
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.evaluation import EvaluationReport, Suite, all_questions
from incremental_llm.evaluation.corrections import untestable
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.feedback import FeedbackStore, StoredEvent
from incremental_llm.feedback.events import event_to_dict
from incremental_llm.gate import Decision, decide
from incremental_llm.gate.feasible import check_headroom, check_measured
from incremental_llm.pending import (
    Pending,
    authorised,
    check_phases,
    check_roles,
    compile_pending,
    replayable,
    still_true,
    unknown_names,
)
from incremental_llm.registry import PRODUCTION, EventUse, Registry, attempt_key, event_uses
from incremental_llm.rehearsal import Production, Tonight, known, rehearse, topicless
from incremental_llm.replay import Facts, Mixture, ReplayBuffer, mix
from incremental_llm.retrain import renewed
from incremental_llm.runs import Clock, Reader, next_run
from incremental_llm.unsettled import left_to_people

Progress = Callable[[str, int, int, float | None], None]

NOT_REACHED = "not_reached"
"""What the account says of an event whose examples were made, but trained by no phase: see the run's notes."""


@dataclass(frozen=True)
class Judged:
    """A candidate that was trained, measured and judged. Nothing is committed yet.

    `kept` are the earlier corrections that still hold, `buffer` is the replay buffer without what is no longer true,
    `facts` are what it goes on by, `sources` are the older events that trained rows stand on, `number` is the version
    that it becomes if it passes, `notes` say in words what was left out on the way.
    """

    todo: Pending
    stack: Stack
    checks: Decision
    candidate: EvaluationReport
    production: EvaluationReport
    dataset: CompiledDataset
    mixture: Mixture
    kept: tuple[AcceptedCorrection, ...]
    buffer: ReplayBuffer
    facts: Facts
    training: Any
    stage_seconds: dict[str, float]
    folder: Path
    sources: dict[str, StoredEvent]
    number: int
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all stages; of an interrupted stage, what it took once it was continued."""
        return sum(self.stage_seconds.values())

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, in words."""
        return self.checks.reasons

    @property
    def replay(self) -> str:
        """The realised mixture, in words."""
        return self.mixture.sentence

    @property
    def tokens(self) -> int:
        """Tokens trained, over all phases."""
        return int(self.training.tokens)


@dataclass(frozen=True)
class RunOutcome(Judged):
    """What became of it: "promoted", "rejected" or "quarantined". `version` is None unless it was promoted."""

    decision: str
    version: int | None
    attempt: str | None


def judge_increment(
    *,
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    base: ResolvedBase,
    suites: Sequence[Suite],
    workspace: Path,
    train: Callable[..., Any],
    progress: Progress,
    read: Reader | None = None,
) -> Judged:
    """One increment from pending feedback to a verdict that is not committed; called on the first process only.

    `train` is `training.train_increment`, or a caller's wrapper around it that lets other processes take part. `read`
    is as for `next_run`.

    Raises:
        NothingToTrainError: nothing to train; nothing is recorded.
        IncrementalError: any failure; production is untouched and the same call continues.
    """
    config.gate.check_names((*config.suites.names, KEPT, LEARNED))
    for suite in suites:
        registry.record_suite(suite.name, suite.version, suite.contract)
    asked = all_questions(config.suites.folder)
    run = next_run(workspace, registry, store, config, suites, asked, read)
    todo, folder = run.todo, run.folder
    superseded = check_roles(registry, config, suites, todo)
    clock = Clock(folder / "seconds.json")
    progress(run.continued or "compiling feedback", 0, 1, None)
    dataset, to_review = _compiled(todo, store, config, asked, base, folder / "dataset")
    replay = replayable(todo, dataset, config, asked)
    facts = known(todo, config, base)
    planned = mix(dataset.examples, replay.tonight, config.mixing, config.training.seed, facts, config.training.passes)
    clock.lap("compile")

    kept = still_true(todo.accepted, dataset.superseded | todo.superseded)
    claim = claim_of(todo, dataset.corrections, kept, config, suites, superseded)
    suites = (*suites, *claim.corrections)
    check_phases(planned, config)
    measured = Measurement(workspace / "evaluations", base.folder, registry.objects, progress)
    production = measured.report(todo.head.stack, suites, f"production v{todo.head.version}")
    check_measured(production, f"production v{todo.head.version}")
    check_headroom(production, config.gate, claim.better, f"production v{todo.head.version}")
    tonight = Tonight(Production(measured, todo.head), replay, planned, dataset, config, asked, facts)
    rehearsal = rehearse(tonight)
    mixture = rehearsal.mixture
    write_json(folder / "mixture.json", mixture.model_dump(mode="json"))
    progress(mixture.sentence, 1, 1, None)
    clock.lap("measure production")
    anchors, spared = everyday_anchors(measured, todo, run.everyday, config, dataset.examples, asked)
    measured.release()
    with run.pinned():
        training = train(
            base_folder=base.folder,
            adapter_folders=adapter_paths(todo.below, registry.objects),
            examples=tuple(row.example for row in mixture.rows),
            replayed=frozenset(row.example.id for row in mixture.rows if row.origin == "replay"),
            turns=mixture.turns,
            replayable=frozenset(item.example.id for item in rehearsal.kept.items),
            anchors=anchors,
            settings=config.training,
            out=folder / "training",
            progress=progress,
        )
    clock.lap("train")
    stack = todo.below.plus(registry.put_object(training.adapter), training.replaces)
    candidate = measured.report(stack, suites, "the candidate")
    clock.lap("measure candidate")
    corrections = untestable(fresh(dataset.corrections, kept))
    weighed = dataset.weighting.sentence if dataset.weighting else ""
    heard = represent(todo.events, {name for example in dataset.examples for name in example.sources})
    write_json(folder / "representation.json", heard.model_dump(mode="json"))
    untold = (claim.note, topicless(dataset.examples, config, facts), spared, corrections, weighed, heard.sentence)
    notes = [*unknown_names(todo, store, config), *filter(None, untold)]
    decision = verdict(todo.head.stack, production, stack, candidate, config, claim, superseded)
    write_json(folder / "decision.json", decision.model_dump(mode="json"))
    return Judged(
        todo=todo,
        stack=stack,
        checks=decision,
        candidate=candidate,
        production=production,
        dataset=dataset,
        mixture=mixture,
        kept=kept,
        buffer=rehearsal.kept,
        facts=facts,
        training=training,
        stage_seconds=clock.laps,
        folder=folder,
        sources=store.get(sorted(_sources(mixture) - dataset.account.keys())),
        number=len(registry.list()),
        notes=(
            *dataset.trust.sentences(),
            *replay.notes,
            *rehearsal.notes,
            *notes,
            *training.notes,
            *filter(None, (to_review,)),
        ),
    )


def verdict(
    before: Stack,
    production: EvaluationReport,
    after: Stack,
    candidate: EvaluationReport,
    config: RunConfig,
    claim: Claim,
    superseded: Sequence[str],
) -> Decision:
    """The gate's decision on the stack `after` in the place of `before`, for what was claimed before it was made."""
    claimed = {suite.name for suite in claim.corrections}  # by what was promised, not by what was measured
    return decide(
        candidate=candidate,
        production=production,
        candidate_stack=after.digest,
        production_stack=before.digest,
        policy=config.gate,
        new_suites=claim.new,
        old_suites=claim.old,
        corrections=(KEPT,) if KEPT in claimed else (),
        own_corrections=LEARNED if LEARNED in claimed else None,
        superseded_suites=superseded,
        unguarded_suites=config.suites.watch,
        gain_needed=claim.gain,
    )


def commit_increment(registry: Registry, judged: Judged, config: RunConfig, line: str = PRODUCTION) -> RunOutcome:
    """Publish the objects, then one transaction: a new version, or a recorded attempt.

    `line` is the ref that the increment goes on from.

    Raises:
        PreconditionFailed: the line has moved since the increment was judged; nothing was committed.
    """
    todo, folder, seed = judged.todo, judged.folder, config.training.seed
    digests: dict[str, Any] = {
        "dataset": registry.put_object(folder / "dataset"),
        "report": registry.put_json(judged.candidate.model_dump(mode="json")),
        "decision": registry.put_json(judged.checks.model_dump(mode="json")),
        "recipe": registry.put_json(config.recipe),
    }
    uses = _uses(judged)
    seqs = [stored.seq for stored in todo.events]
    if not judged.checks.passed:
        attempt = registry.record_attempt(
            parent=todo.head.version,
            seqs=seqs,
            reason="; ".join(judged.reasons),
            seed=seed,
            stack_digest=judged.stack.digest,
            adapter=judged.stack.adapters[-1],
            uses=uses,
            trusted=_trusted(todo, config),
            **digests,
        )
        spent = not registry.quarantined().isdisjoint(seqs)
        return RunOutcome(
            **vars(judged), decision="quarantined" if spent else "rejected", version=None, attempt=attempt.id
        )
    # What no step reached was not taught: to test it each night would hold the model to what it never saw.
    trained = _sources(judged.mixture, without=judged.training.not_trained)
    learned = tuple(c for c in fresh(judged.dataset.corrections, judged.kept) if c.event_id in trained)
    with staged_folder(folder / "replay") as staged:
        examples, how = judged.dataset.examples, (seed, config.replay, judged.facts)
        buffer = renewed(judged.buffer, examples, judged.number, todo, registry, *how)
        buffer.write(staged / "buffer.json")
    snapshot = registry.commit_increment(
        parent=todo.head.version,
        stack=judged.stack,
        replaces=len(todo.head.stack.adapters) + 1 - len(judged.stack.adapters),
        cursor=todo.until,
        attempt=attempt_key(seqs, digests["recipe"], todo.head.version, seed),
        replay=registry.put_object(folder / "replay"),
        corrections=registry.put_json([c.model_dump(mode="json") for c in (*judged.kept, *learned)]),
        note=f"{'retrained: ' * (config.process == 'retrain')}{len(judged.dataset.examples)} examples from "
        f"{len(todo.events)} events",
        uses=uses,
        line=line,
        **digests,
    )
    return RunOutcome(**vars(judged), decision="promoted", version=snapshot.version, attempt=None)


def _trusted(todo: Pending, config: RunConfig) -> frozenset[int]:
    """Places of events that no refusal quarantines: policy changes by reviewers with the right to them, and what
    production stands on, which a retraining reads again."""
    ids = {change.id for change in authorised(todo.events, config)}
    return frozenset(s.seq for s in todo.events if s.event.id in ids or s.seq <= todo.head.cursor)


def _uses(judged: Judged) -> tuple[EventUse, ...]:
    """What became of each event of the batch, and which older ones were trained on, with everyone they are from.

    A row stands on all its sources: on the question of one user and the correction of another.
    """
    events = {stored.event.id: stored for stored in judged.todo.events} | judged.sources
    account = dict(judged.dataset.account)
    trained = _sources(judged.mixture, without=judged.training.not_trained)
    for source in _sources(judged.mixture) - trained:
        if account.get(source) == USED:
            account[source] = NOT_REACHED
    people = {name: _users(event_to_dict(stored.event)) for name, stored in events.items()}
    older: dict[str, set[str]] = {}
    for row in judged.mixture.rows:
        for source in (set(row.example.sources) & trained) - account.keys():
            older.setdefault(source, set()).update(people.get(source, row.example.users))
    return event_uses(
        account,
        {name: stored.seq for name, stored in events.items()},
        people,
        replayed={event: tuple(sorted(users)) for event, users in sorted(older.items())},
    )


def _sources(mixture: Mixture, without: Container[str] = ()) -> set[str]:
    """Ids of the events that the rows stand on, but for the examples `without`."""
    return {source for row in mixture.rows if row.example.id not in without for source in row.example.sources}


def _users(event: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(event[key]) for key in ("user", "reviewer") if event.get(key))


def everyday_anchors(
    measured: Measurement,
    todo: Pending,
    prompts: Sequence[Conversation],
    config: RunConfig,
    examples: Sequence[Example],
    asked: Sequence[str],
) -> tuple[list[tuple[Conversation, str]], str]:
    """Everyday prompts with the anchor teacher's own answers, kept beside its evaluations; and what was left out.

    The anchor would hold the old answer against a correction, so a prompt that one of the `examples` is about is none
    tonight; nor is one that a suite asks, which would then measure what it was trained on.
    """
    settings = config.training.anchor
    if settings.weight == 0:
        return [], ""
    teacher = todo.below if settings.teacher == "previous" else todo.below.model_copy(update={"adapters": ()})
    key = json_digest(
        [teacher.digest, [canonical_json(as_dicts(prompt)) for prompt in prompts], settings.max_new_tokens]
    )
    who = f"production v{todo.head.version}" if teacher.adapters else "the base"
    answers = measured.remembered(
        teacher, "anchors", key, lambda: measured.answers(teacher, prompts, settings.max_new_tokens, who)
    )
    answered = zip(prompts, answers, strict=True)
    taught = (example.prompt[-1].content for example in examples)
    index = SuiteIndex((*asked, *taught), config.compile.suite_similarity)
    anchors = [(prompt, answer) for prompt, answer in answered if prompt[-1].content not in index]
    if not anchors:
        raise InputError(
            f"training.anchor: expected everyday prompts, found feedback or a suite about all {len(prompts)} of them. "
            "Add others to training.anchor.prompts, or leave it out to use those of the package."
        )
    spared = len(prompts) - len(anchors)
    return anchors, f"{spared} everyday prompts were no anchor tonight: feedback or a suite asks them" if spared else ""


def _compiled(
    todo: Pending, store: FeedbackStore, config: RunConfig, asked: Sequence[str], base: ResolvedBase, target: Path
) -> tuple[CompiledDataset, str]:
    """The dataset of the pending events, written to `target`, and in words what it left to people, who are asked.

    Raises:
        NothingToTrainError: they became no example.
    """
    from incremental_llm.adapters.load import load_tokenizer

    dataset = compile_pending(todo, config, asked, load_tokenizer(base.folder))
    to_review = left_to_people(store, config, todo, dataset)
    if not dataset.examples:
        raise NothingToTrainError(
            f"{len(todo.events)} new events became no example: {_reasons(dataset)}. See `illm dataset show`."
            + f" {to_review}" * bool(to_review)
        )
    if not is_complete(target):
        with staged_folder(target) as folder:
            dataset.write(folder)
    return dataset, to_review


def _reasons(dataset: CompiledDataset) -> str:
    counts: dict[str, int] = {}
    for outcome in dataset.account.values():
        counts[outcome] = counts.get(outcome, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no events"
