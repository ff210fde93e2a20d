"""Online micro-updates on the feedback that a workspace has pending: batch after batch at once, measured at the end.

It shows what learning at once would have made of the same events that the next increment would be made from. Nothing of
it is committed: without a gate before every update, no version may come of it.

The one design fact: a batch knows only what came before it. It is compiled, checked against corrections accepted so far
and mixed with replay like a night of its own, and policy changes end what was learnt from then on.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.artifacts import write_json
from incremental_llm.base_models import ResolvedBase
from incremental_llm.config import RunConfig
from incremental_llm.dataset import Example
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.evaluation import EvaluationReport, Suite, all_questions
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.feedback import FeedbackStore, StoredEvent
from incremental_llm.feedback.events import Interaction, references
from incremental_llm.pending import (
    authorised,
    check_roles,
    compile_pending,
    read_pending,
    replayable,
    still_true,
)
from incremental_llm.pipeline import Progress, everyday_anchors
from incremental_llm.registry import Registry
from incremental_llm.replay import anchor_prompts

if TYPE_CHECKING:
    from incremental_llm.training.online import UpdateReport


@dataclass(frozen=True)
class OnlineBatch:
    """One batch: its events, the examples they gave, and what the update did.

    `seconds` are from the events to the weights, compiling included; `note` says why nothing was trained.
    """

    events: int
    examples: int
    replayed: int
    steps: int
    tokens: int
    seconds: float
    losses: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class OnlineRun:
    """All batches, and production and the policy after the last one on the same suites; `adapter` is what they left.

    `version` is production's, which is unchanged; `between` are reports at places in the log on the way. `report.json`
    beside the adapter holds the same.
    """

    version: int
    batches: tuple[OnlineBatch, ...]
    production: EvaluationReport
    after: EvaluationReport
    between: dict[int, EvaluationReport]
    adapter: Path
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """From feedback to weights, over all batches."""
        return sum(batch.seconds for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Tokens trained, over all batches."""
        return sum(batch.tokens for batch in self.batches)


def run_online(
    *,
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    base: ResolvedBase,
    suites: Sequence[Suite],
    workspace: Path,
    batch: int,
    steps: int,
    out: Path,
    progress: Progress,
    marks: Collection[int] = (),
) -> OnlineRun:
    """Take the pending events in, `batch` pieces of feedback at a time and `steps` steps of a phase at most.

    The registry gets the adapter as an object, so that it can be measured like any stack, and nothing else. `marks`
    are places in the log: behind the batch that reaches one, the policy is kept and measured as well.

    Raises:
        NothingToTrainError: no new feedback, or none that a phase could be trained on.
        InputError: `batch` is below 1, or `out` is there already.
    """
    from incremental_llm.training.online import OnlineTrainer

    if batch < 1 or steps < 1:
        raise InputError(f"expected batches of 1 or more events and 1 or more steps, found {batch} and {steps}.")
    if out.exists():
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten.")
    todo, asked = read_pending(registry, store, config), all_questions(config.suites.folder)
    check_roles(registry, config, suites, todo)
    measured = Measurement(workspace / "evaluations", base.folder, registry.objects, progress)
    production = measured.report(todo.head.stack, suites, f"production v{todo.head.version}")
    anchor = config.training.anchor
    everyday = anchor_prompts(Path(anchor.prompts) if anchor.prompts else None) if anchor.weight else ()
    anchors, spared = everyday_anchors(measured, todo, everyday, config, (), asked)
    measured.release()
    trainer = OnlineTrainer(
        base_folder=base.folder,
        adapter_folders=adapter_paths(todo.below, registry.objects),
        settings=config.training,
        anchors=anchors,
        buffer=todo.buffer,
        replay=config.replay,
        steps=steps,
        progress=progress,
    )
    batches: list[OnlineBatch] = []
    kept: dict[int, Path] = {}
    waiting: tuple[Example, ...] = ()
    changes, accepted = todo.changes, todo.accepted
    parts = list(_batches(todo.events, batch))
    for number, part in enumerate(parts, 1):
        started = time.monotonic()
        own = {stored.event.id for stored in part}
        context = store.get(sorted({name for stored in part for name in references(stored.event)} - own))
        now = replace(todo, events=part, context=context, changes=changes, accepted=accepted, buffer=trainer.buffer)
        dataset = compile_pending(now, config, asked, trainer.tokenizer)
        replay = replayable(now, dataset, config, asked)
        changes = (*changes, *authorised(part, config))
        ended = dataset.superseded | now.superseded
        trainer.keep(replay.kept, ended)
        accepted = (*still_true(accepted, ended), *dataset.corrections)
        examples = (*(e for e in waiting if ended.isdisjoint(e.sources)), *dataset.examples)
        try:
            report = trainer.update(examples, rehearse=replay.tonight)
            waiting = tuple(e for e in examples if e.id in report.waiting)
            note = f"{len(waiting)} examples were too few of their kind and wait" if waiting else ""
            done = _batch(part, len(dataset.examples), started, report, note)
        except NothingToTrainError as nothing:  # too few of a kind wait for the next ones
            waiting, done = examples, _batch(part, len(dataset.examples), started, note=str(nothing))
        batches.append(done)
        for mark in sorted(mark for mark in set(marks) - kept.keys() if mark <= part[-1].seq):
            kept[mark] = trainer.save(out / f"adapter-{mark}").adapter
        progress(f"update {number} in {done.seconds:.1f} s", number, len(parts), next(iter(done.losses.values()), None))
    if not trainer.updates:
        raise NothingToTrainError(f"none of {len(parts)} batches could be trained on: {batches[-1].note}")
    result = trainer.save(out / "adapter")
    del trainer

    def judged(adapter: Path, when: str) -> EvaluationReport:
        stack = todo.below.plus(registry.put_object(adapter), result.replaces)
        return measured.report(stack, suites, f"the policy {when}")

    between = {mark: judged(adapter, f"after event {mark}") for mark, adapter in kept.items()}
    after = judged(result.adapter, "after online updates")
    left = f"{len(waiting)} examples of the last batches were too few to be trained on" if waiting else ""
    notes = tuple(filter(None, (*result.notes, spared, left)))
    whole = OnlineRun(todo.head.version, tuple(batches), production, after, between, result.adapter, notes)
    write_json(out / "report.json", _record(whole, config))
    return whole


def _batches(events: Sequence[StoredEvent], size: int) -> Iterator[tuple[StoredEvent, ...]]:
    """The events in order, cut behind every `size` pieces of feedback; what was served in between goes along."""
    part: list[StoredEvent] = []
    feedback = 0
    for stored in events:
        part.append(stored)
        feedback += not isinstance(stored.event, Interaction)
        if feedback == size:
            yield tuple(part)
            part, feedback = [], 0
    if feedback:
        yield tuple(part)


def _batch(
    part: Sequence[StoredEvent], examples: int, started: float, report: UpdateReport | None = None, note: str = ""
) -> OnlineBatch:
    return OnlineBatch(
        events=len(part),
        examples=examples,
        replayed=report.replayed if report else 0,
        steps=report.steps if report else 0,
        tokens=report.tokens if report else 0,
        seconds=time.monotonic() - started,
        losses=report.losses if report else {},
        note=note,
    )


def _record(run: OnlineRun, config: RunConfig) -> dict[str, object]:
    reports = {"production": run.production, "after": run.after}
    reports |= {f"after event {mark}": report for mark, report in run.between.items()}
    scores = {side: {name: found.score for name, found in report.suites.items()} for side, report in reports.items()}
    return {
        "production_version": run.version,
        "scores": scores,
        "seconds": run.seconds,
        "tokens": run.tokens,
        "batches": [asdict(batch) for batch in run.batches],
        "notes": run.notes,
        "recipe": config.recipe,
    }
