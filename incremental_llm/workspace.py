"""A workspace: the Python API, one call for everything that the command line does.

    import incremental_llm as illm

    workspace = illm.Workspace.create(illm.load_config(Path("incremental.yaml")))
    workspace.import_feedback(Path("night1.jsonl"))
    outcome = workspace.run()                       # compile, train, measure, gate, commit
    workspace.rollback(to=0, reason="complaints")   # a new version with the old stack

Adapter management reads: load, stack, merge, promote, rollback, diff, export.

The one design fact: a workspace holds no state of its own. Everything lives in the registry, the feedback store and
content-addressed folders, so two processes may open the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from incremental_llm import base_models, pending, pipeline
from incremental_llm.adapters.stack import Stack, adapter_paths
from incremental_llm.artifacts import staged_folder, write_atomic
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import Message, canonical_json
from incremental_llm.claims import claim_of
from incremental_llm.config import CORRECTION_SUITES, RunConfig
from incremental_llm.dataset import (
    USED,
    CompiledDataset,
    HeldOutReply,
    Representation,
    held_out_replies,
    represent,
)
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.evaluation import EvaluationReport, Suite, all_questions, load_suites
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.importers import Format, ImportReport, import_file
from incremental_llm.lock import exclusive
from incremental_llm.registry import GRACE, Collected, Comparison, Registry, Repair, Snapshot, Usage, increments_in
from incremental_llm.registry.exchange import PushReport, remote_at
from incremental_llm.rehearsal import announced
from incremental_llm.replay import mix
from incremental_llm.runs import Run, next_run
from incremental_llm.training.settings import PatchSettings

if TYPE_CHECKING:
    from incremental_llm.cherry_drop import DropPlan, DropReport
    from incremental_llm.consolidate_run import Consolidation, ConsolidationPlan
    from incremental_llm.erase import ErasurePlan, ErasureReport, RebuildReport
    from incremental_llm.evaluation.measure import Measurement
    from incremental_llm.handoff import ExportReport, Form
    from incremental_llm.online_run import OnlineRun
    from incremental_llm.pipeline import Progress, RunOutcome
    from incremental_llm.training.patch import PatchRecord


def silent(what: str, done: int, total: int, loss: float | None) -> None:
    """Progress that shows nothing."""


@dataclass(frozen=True)
class RunPlan:
    """What a run would do, in words; nothing was written."""

    lines: tuple[str, ...]


class Workspace:
    """Use `create` once and `open` afterwards; a context manager."""

    def __init__(self, config: RunConfig, registry: Registry, store: FeedbackStore) -> None:
        served = registry.head().stack
        if config.training.quantization != served.quantization:
            raise InputError(
                f"training.quantization: expected {served.quantization}, what this registry was judged in, "
                f"found {config.training.quantization}. Give that back, or make another workspace."
            )
        self.config = config.at_dtype(served.dtype)
        self.registry = registry
        self.store = store
        self._base: ResolvedBase | None = None
        self._chatting: Measurement | None = None  # keeps its model loaded from one answer to the next

    @classmethod
    def create(cls, config: RunConfig, *, say: Callable[[str], None] = lambda line: None) -> Workspace:
        """Make the folder, the databases and version 0, which is the base itself; an existing workspace is opened.

        Raises:
            BaseModelError: the base is not to be had, or not the one that an existing workspace was made for.
        """
        root = config.workspace
        if Registry.exists(root, config.registry):
            workspace = cls.open(config)
            try:
                workspace._base = workspace._checked_base(say)
            except BaseException:
                workspace.close()
                raise
            return workspace
        base = base_models.resolve(config.base, say=say)
        root.mkdir(parents=True, exist_ok=True)
        from incremental_llm.adapters.load import native_dtype

        training = config.training.at_dtype(native_dtype())
        stack = Stack(base=base.ref, dtype=training.dtype, quantization=training.quantization)
        registry = Registry.create(root, stack, url=config.registry, note=f"base {config.base}")
        workspace = cls(config, registry, FeedbackStore(config.database_url))
        workspace._base = base
        return workspace

    @classmethod
    def open(cls, config: RunConfig) -> Workspace:
        """An existing workspace.

        Raises:
            InputError: there is none; the message says how to make one.
        """
        if config.registry is None and not (config.workspace / "registry.db").is_file():
            raise InputError(f"{config.workspace}: expected a workspace, found none. Make one: illm init")
        registry = Registry.open(config.workspace, url=config.registry)
        return cls(config, registry, FeedbackStore(config.database_url))

    @property
    def base(self) -> ResolvedBase:
        """The base model on the disk, checked against the registry's.

        Raises:
            BaseModelError: not to be had, or not the one the registry was made for.
        """
        if self._base is None:
            self._base = self._checked_base()
        return self._base

    def _checked_base(self, say: Callable[[str], None] = lambda line: None) -> ResolvedBase:
        base = base_models.resolve(self.config.base, say=say)
        Registry.open(self.config.workspace, url=self.config.registry, base=base.ref).close()
        return base

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        from incremental_llm.adapters.load import load_tokenizer

        return load_tokenizer(self.base.folder)

    def suites(self) -> tuple[Suite, ...]:
        """The suites that the recipe names; SuiteError for a missing or mistyped one."""
        names = self.config.suites.names
        if not names:
            raise InputError(
                "the recipe names no suites: without any, nothing could show that an update is not worse. "
                "Set suites.old and suites.new."
            )
        return load_suites(self.config.suites.folder, names)

    # the loop

    def import_feedback(
        self,
        path: Path,
        progress: Any = None,
        *,
        format: Format | None = None,
        mapping: Mapping[str, str] | None = None,
        processes: int = 0,
    ) -> ImportReport:
        """Take in a log or an export; running it again takes in only what is new. The store keeps what was refused.

        Without `format` the file says what it is; `mapping` says which column is which, as --map of the command. For
        `processes` see `import_jsonl`.
        """
        return import_file(self.store, path, format=format, mapping=mapping, progress=progress, processes=processes)

    def compile_preview(self) -> CompiledDataset:
        """The dataset that the next increment would be made from; writes nothing."""
        self.registry.refuse_pending()
        questions = all_questions(self.config.suites.folder)
        suites = self.suites() if self.config.suites.names else ()  # on the first day there is none
        todo = self._next_run(suites, questions).todo
        return pending.compile_pending(todo, self.config, questions, self.tokenizer)

    def representation(self) -> Representation:
        """Who and what the whole log's feedback does not represent; used is what production was trained on."""
        self.registry.refuse_pending()
        increments = increments_in(self.registry.list(), self.registry.head().version)
        sightings = (one for version in increments for one in self.registry.events_of(version))
        return represent(self.store.read(), {one.event for one in sightings if one.outcome == USED})

    def held_out(self, out: Path) -> tuple[HeldOutReply, ...]:
        """The replies of the conversations that are kept for evaluation, written to `out` as JSON lines.

        Raises:
            InputError: the recipe holds none out.
        """
        self.registry.refuse_pending()
        if not self.config.compile.held_out_share:
            raise InputError(
                "compile.held_out_share: expected a share above 0, such as 0.02, found 0: nothing is held out. Set it "
                "before the nights that are not to train on it."
            )
        replies = held_out_replies(self.store.read(), self.config.compile)
        write_atomic(out, "".join(canonical_json(one.model_dump(mode="json")) + "\n" for one in replies))
        return replies

    def plan(self) -> RunPlan:
        """What `run` would do now, without doing it.

        Raises:
            InputError: as `run` would, for what it refuses before it measures anything.
            NothingToTrainError: no new feedback, or none that could be trained on or could show a gain.
        """
        self.registry.refuse_pending()
        suites, questions = self.suites(), all_questions(self.config.suites.folder)
        self.config.gate.check_names((*self.config.suites.names, *CORRECTION_SUITES))
        for suite in suites:
            self.registry.check_suite(suite.name, suite.version, suite.contract)
        run = self._next_run(suites, questions)
        todo = run.todo
        superseded = pending.check_roles(self.registry, self.config, suites, todo)
        dataset = pending.compile_pending(todo, self.config, questions, self.tokenizer)
        replay = pending.replayable(todo, dataset, self.config, questions)
        training = self.config.training
        mixture = mix(dataset.examples, replay.tonight, self.config.mixing, training.seed, todo.facts, training.passes)
        kept = pending.still_true(todo.accepted, dataset.superseded | todo.superseded)
        claim = claim_of(todo, dataset.corrections, kept, self.config, suites, superseded)
        pending.check_phases(mixture, self.config)
        lines = [
            *([run.continued] if run.continued else []),
            f"production is v{todo.head.version} with {len(todo.head.stack.adapters)} adapters; "
            f"{len(todo.events)} {'new events' if self.config.process == 'increment' else 'events, all that count,'} "
            f"would become {len(dataset.examples)} examples "
            f"({len(dataset.sft)} SFT, {len(dataset.pairs)} pairs, {len(dataset.unpaired)} unpaired)",
        ]
        lines += [
            *dataset.trust.sentences(),
            *(announced(self.config) or (mixture.sentence,)),
            *replay.notes,
            *pending.unknown_names(todo, self.store, self.config),
        ]
        phases = ", then ".join(
            f"{p.objective} ({p.epochs:g} epochs at {p.learning_rate:g}"
            f"{f', at most {p.max_steps} steps' if p.max_steps else ''})"
            for p in self.config.training.phases
        )
        lines.append(f"train one adapter of rank {self.config.training.lora.rank}: {phases}")
        better = (", ".join(claim.new) or "the corrections") if claim.gain else "nothing"
        not_worse = ", ".join(claim.old)
        lines.append(
            f"measure on {', '.join(self.config.suites.names)}; "
            f"the gate wants {better} better and {not_worse} not worse"
        )
        return RunPlan(tuple(lines))

    def run(self, progress: Progress = silent, train: Callable[..., Any] | None = None) -> RunOutcome:
        """One increment, from pending feedback to a committed decision; the same call continues a killed one.

        Raises:
            NothingToTrainError: no new feedback, or none of it could be used.
            WorkspaceBusyError: another run holds the workspace.
        """
        with exclusive(self.config.workspace):
            self.registry.refuse_pending()
            return self._run(progress, train)

    def online(
        self,
        out: Path,
        *,
        batch: int = 4,
        steps: int = 8,
        marks: Collection[int] = (),
        progress: Progress = silent,
    ) -> OnlineRun:
        """What learning at once makes of the pending feedback, `batch` pieces at a time; nothing is promoted.

        `marks` are places in the log behind which it is measured on the way.

        Raises:
            NothingToTrainError: no new feedback, or none of it could be used.
            WorkspaceBusyError: another run holds the workspace.
        """
        from incremental_llm.online_run import run_online

        with exclusive(self.config.workspace):
            self.registry.refuse_pending()
            return run_online(
                registry=self.registry,
                store=self.store,
                config=self.config,
                base=self.base,
                suites=self.suites(),
                workspace=self.config.workspace,
                batch=batch,
                steps=steps,
                out=out,
                progress=progress,
                marks=marks,
            )

    def patch(
        self,
        event: str,
        out: Path | None = None,
        *,
        prompts: Sequence[str] = (),
        settings: PatchSettings | None = None,
        progress: Progress = silent,
    ) -> PatchRecord:
        """A minimal adapter on production for one correction, checked on prompts around it; nothing is promoted.

        Args:
            out: a folder that does not exist, by default one for this event in the workspace's `patches`.
            prompts: more prompts that must not move.

        Raises:
            InputError: no such correction, or one that an increment would leave out.
            NothingToTrainError: production gives that answer already.
            TrainingError: the answer was not learnt, or something else moved.
        """
        from incremental_llm.patch_run import patch_event, patch_folder

        with exclusive(self.config.workspace):
            self.registry.refuse_pending()
            return patch_event(
                registry=self.registry,
                store=self.store,
                config=self.config,
                base=self.base,
                suites=self.suites(),
                event=event,
                prompts=prompts,
                patch=settings or PatchSettings(seed=self.config.training.seed),
                out=out or patch_folder(self.config.workspace, event),
                progress=progress,
            )

    def plan_consolidation(self, last: int | None = None) -> ConsolidationPlan:
        """What `consolidate` would make, how large and how far from the stack; nothing is written or measured."""
        from incremental_llm.consolidate_run import plan_consolidation

        self.registry.refuse_pending()
        return plan_consolidation(self.registry, self.config, last)

    def consolidate(self, last: int | None = None, *, progress: Progress = silent) -> Consolidation:
        """Make production's `last` adapters one, by default all, as `consolidation` of the recipe says, if it passes.

        Raises:
            InputError: fewer than two adapters, or suites that cannot judge it.
            WorkspaceBusyError: a run holds the workspace.
        """
        from incremental_llm.consolidate_run import consolidate

        with exclusive(self.config.workspace):
            self.registry.refuse_pending()
            return consolidate(
                registry=self.registry,
                store=self.store,
                config=self.config,
                base=self.base,
                suites=self.suites(),
                last=last,
                progress=progress,
            )

    def consolidation_due(self) -> str:
        """Why the recipe has a nightly run make one of production's adapters now; empty where it has not."""
        from incremental_llm.consolidate_run import consolidation_due

        return consolidation_due(self.registry, self.config)

    def evaluate(
        self, ref: str | int = "production", suites: Sequence[str] | None = None, progress: Progress = silent
    ) -> EvaluationReport:
        """Measure a version on the recipe's suites, or on those named."""
        self.registry.refuse_pending()
        chosen = load_suites(self.config.suites.folder, suites) if suites else self.suites()
        snapshot = self.registry.get(ref)
        for suite in chosen:
            self.registry.record_suite(suite.name, suite.version, suite.contract)
        return self._measurement(progress).report(snapshot.stack, chosen, f"v{snapshot.version}")

    # review

    def fill_review(self, low_margin: int = 0, progress: Progress = silent) -> int:
        """Put what pending feedback leaves to people into the review queue; how many questions were new.

        `low_margin`: also so many pairs of production's own increment of which it hardly prefers one reply.

        Raises:
            InputError: low margins are asked for, and production was made from no pairs.
        """
        self.registry.refuse_pending()
        from incremental_llm.unsettled import fill_unsettled

        try:
            todo = pending.read_pending(self.registry, self.store, self.config)
        except NothingToTrainError:
            new = 0
        else:
            questions = all_questions(self.config.suites.folder)
            dataset = pending.compile_pending(todo, self.config, questions, self.tokenizer)
            new = fill_unsettled(self.store, self.config, todo, dataset)
        return new + (self._fill_low_margins(low_margin, progress) if low_margin else 0)

    def _fill_low_margins(self, at_most: int, progress: Progress) -> int:
        from incremental_llm.dataset.unsure import low_margin
        from incremental_llm.unsettled import review_queue

        head = self.registry.head()
        made = CompiledDataset.read(self.registry.object_path(head.dataset)) if head.dataset else None
        if made is None or not made.pairs:
            raise InputError(
                f"expected pairs that production v{head.version} was made from, found none. Run one with pairs first, "
                "or leave --low-margin out."
            )
        replies = [(pair.prompt, reply) for pair in made.pairs for reply in pair.texts]
        scored = self._measurement(progress).mean_logps(head.stack, replies, f"production v{head.version}", "on pairs")
        margins = [
            (pair, chosen - rejected)
            for pair, chosen, rejected in zip(made.pairs, scored[::2], scored[1::2], strict=True)
            if chosen is not None and rejected is not None
        ]
        events = self.store.get({name for pair in made.pairs for name in pair.sources}).values()
        proposals = low_margin(margins, events, at_most)
        return review_queue(self.store, self.config).add(proposals)

    # erasing a person

    def plan_erasure(self, person: str, also: Collection[str] = ()) -> ErasurePlan:
        """What `erase` would do; nothing is changed. Raises InputError as `erase` does."""
        from incremental_llm.erase import plan_erasure

        return plan_erasure(self.registry, self.store, self.config, person, also)

    def erase(self, person: str, also: Collection[str] = (), *, progress: Progress = silent) -> ErasureReport:
        """Erase a user or reviewer from everything in the workspace; interrupted, the same call goes on.

        Production keeps its weights until `rebuild` has made others. `also` are other strings that mark what is his
        where no index leads to it, such as an e-mail address in a message that became no event.

        Raises:
            InputError: nobody of this name, or policy changes of his that nobody else has made.
            WorkspaceBusyError: a run holds the workspace.
        """
        from incremental_llm.erase import erase_person

        with exclusive(self.config.workspace):
            return erase_person(self.registry, self.store, self.config, person, also, progress)

    def rebuild(self, progress: Progress = silent, train: Callable[..., Any] | None = None) -> RebuildReport:
        """Make the nights that read an erased person again without him, gates included, and remove his weights.

        Raises:
            InputError: no erasure waits for it, or one has not ended.
            WorkspaceBusyError: a run holds the workspace.
        """
        from incremental_llm.erase import Rebuilding

        if train is None:
            from incremental_llm.training.increment import train_increment

            train = train_increment
        with exclusive(self.config.workspace):
            return Rebuilding(self.registry, self.store, self.config, self.base, train, progress).run()

    def plan_drop(self, version: int | str) -> DropPlan:
        """What `cherry_drop` would train again; nothing is changed. Raises InputError as that does."""
        from incremental_llm.cherry_drop import plan_drop

        return plan_drop(self.registry, version)

    def cherry_drop(
        self,
        version: int | str,
        reason: str,
        progress: Progress = silent,
        train: Callable[..., Any] | None = None,
    ) -> DropReport:
        """Take one increment out of production: later ones are made again without it, gates included.

        Its events are quarantined when the result serves; interrupted, the same call goes on.

        Raises:
            InputError: not an increment that production stands on.
            WorkspaceBusyError: a run holds the workspace.
        """
        from incremental_llm.cherry_drop import Dropping

        if train is None:
            from incremental_llm.training.increment import train_increment

            train = train_increment
        with exclusive(self.config.workspace):
            parts = (self.registry, self.store, self.config, self.base, train, progress)
            return Dropping(*parts).run(version, reason)

    # adapter management

    def load(self, ref: str | int = "production") -> tuple[Any, Any]:
        """(model, tokenizer) of a version, exactly as it is served and was measured."""
        return self._measurement(silent).model(self.stack(ref), str(ref))

    def stack(self, ref: str | int = "production") -> Stack:
        """The adapters of a version, oldest first, over their base."""
        return self.registry.get(ref).stack

    def merge(self, ref: str | int, out: Path, rank: int | None = None) -> Path:
        """One adapter folder for a whole stack: exact, or the best of a smaller rank (the error is in merge.json)."""
        self.registry.refuse_pending()
        from incremental_llm.adapters.lora import read_adapter, write_adapter
        from incremental_llm.adapters.merge import concatenate, reduce_rank
        from incremental_llm.artifacts import write_json

        stack = self.stack(ref)
        if not stack.adapters:
            raise InputError(f"{ref} is the base without adapters: there is nothing to merge.")
        if out.exists():
            raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten.")
        one = concatenate([read_adapter(path) for path in adapter_paths(stack, self.registry.objects)])
        error = 0.0
        if rank is not None:
            one, reduction = reduce_rank(one, rank)
            error = reduction.relative_error
        with staged_folder(out) as folder:
            write_adapter(folder, one.modules, stack.base.name, scaling=one.scaling)
            write_json(folder / "merge.json", {"stack": stack.digest, "rank": rank, "relative_error": error})
        return out

    def promote(self, version: int, reason: str = "", expected: int | None = None) -> Snapshot:
        """Point production to a version whose own decision passed.

        Refused unless production is `expected`, if given.
        """
        return self.registry.promote(version, reason=reason, expected=expected)

    def rollback(self, to: int | str, reason: str, expected: int | None = None) -> Snapshot:
        """A new version with the stack, replay buffer and cursor of an earlier one; what it undoes is quarantined.

        Refused unless production is `expected`, if given.
        """
        return self.registry.rollback(to, reason, expected=expected)

    def tag(self, name: str, version: int | str, reason: str = "") -> Snapshot:
        """Name a version for good; see `Registry.tag`."""
        return self.registry.tag(name, version, reason)

    def untag(self, name: str) -> int:
        """Take a tag back; the version that it named."""
        return self.registry.untag(name)

    def alias(self, name: str, version: int | str, reason: str = "") -> Snapshot:
        """Point a ref that serves nobody to a version; see `Registry.alias`."""
        return self.registry.alias(name, version, reason=reason)

    def du(self, grace: timedelta = GRACE) -> Usage:
        """Bytes by kind of object and by version, and what `gc` would free."""
        return self.registry.du(grace)

    def plan_gc(self, grace: timedelta = GRACE) -> Collected:
        """What `gc` would remove now; nothing is changed."""
        return self.registry.plan_gc(grace)

    def gc(self, grace: timedelta = GRACE) -> Collected:
        """Remove objects that nothing refers to and nobody has put for as long as `grace`.

        Raises:
            WorkspaceBusyError: a run is going, which has put what it will commit later.
        """
        with exclusive(self.config.workspace):
            return self.registry.gc(grace)

    def push(self, place: str, *, dry_run: bool = False) -> PushReport:
        """Publish the registry to a folder or a Hub repository, `hf://owner/name`; only what is missing is sent.

        Raises:
            PreconditionFailed: what is published there is newer, or has diverged.
        """
        return self.registry.push(remote_at(place), dry_run=dry_run)

    def plan_repair(self, source: Path | None = None) -> tuple[Repair, ...]:
        """What `repair` would do; nothing is changed."""
        return self.registry.plan_repair(source)

    def repair(self, source: Path | None = None) -> tuple[Repair, ...]:
        """Remove what was never finished, and take damaged or missing objects from another copy, by digest.

        Raises:
            WorkspaceBusyError: a run holds the workspace.
        """
        with exclusive(self.config.workspace):
            return self.registry.repair(source)

    def diff(self, before: str | int, after: str | int) -> Comparison:
        """What changed between two versions: stack, recipe, data, weights by layer, scores; and what is not there."""
        return self.registry.compare(before, after)

    def export(
        self,
        ref: str | int,
        out: Path,
        form: Form = "peft",
        *,
        dtype: str | None = None,
        max_error: float = 0.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> ExportReport:
        """Write a version in a form that others serve, loaded back and checked against the stack's own logits.

        Args:
            dtype: to write in; unless given, that of the stack for whole models, and float32 (exact) for adapters.
            max_error: the relative error of the deltas that is accepted in an adapter, 0 (exact) to 1.
            say: called with a line of text before each slow step.
        """
        self.registry.refuse_pending()
        from incremental_llm import handoff

        snapshot = self.registry.get(ref)
        source = handoff.Source(
            snapshot.stack,
            adapter_paths(snapshot.stack, self.registry.objects),
            self.base.folder,
            lineage={"version": snapshot.version, "snapshot": snapshot.model_dump(mode="json")},
            quantization=snapshot.stack.quantization,
            say=say,
        )
        handoff.check_exportable(source, out, form, dtype=dtype, max_error=max_error)
        say(f"loading {ref}")
        source = replace(source, reference=self.load(ref)[0])
        return handoff.export(source, out, form, dtype=dtype, max_error=max_error)

    def chat(self, ref: str | int, messages: Sequence[Message], max_new_tokens: int = 128) -> str:
        """The greedy answer of a version to a conversation."""
        self._chatting = self._chatting or self._measurement(silent)
        return self._chatting.answers(self.stack(ref), [tuple(messages)], max_new_tokens, str(ref))[0]

    def report(self, out: Path, *, say: Callable[[str], None] = lambda line: None) -> Path:
        """The HTML page of everything this registry holds; `say` gets a line where a suite's files are not there."""
        self.registry.refuse_pending()
        from incremental_llm.report.history import history
        from incremental_llm.report.page import write_report

        data = history(
            self.registry,
            self.config.workspace,
            title=f"incremental_llm: {self.config.workspace.name}",
            seed=self.config.training.seed,
            superseded=self.superseded_suites(say=say),
            sources={"this page": "illm report"},
        )
        write_report(data, out)
        return out

    def close(self) -> None:
        """Close both databases."""
        self.registry.close()
        self.store.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def superseded_suites(self, *, say: Callable[[str], None] = lambda line: None) -> tuple[str, ...]:
        """Suites whose truth a policy change has ended, as far as production has seen; `say` as for `report`."""
        from incremental_llm.report.superseded import superseded_suites

        return superseded_suites(self.registry, self.store, self.config, say)

    def _run(self, progress: Progress, train: Callable[..., Any] | None) -> RunOutcome:
        from incremental_llm.report.history import night_of, read_nights, write_night

        suites = self.suites()
        if train is None:
            from incremental_llm.training.increment import train_increment

            train = train_increment
        judged = pipeline.judge_increment(
            registry=self.registry,
            store=self.store,
            config=self.config,
            base=self.base,
            suites=suites,
            workspace=self.config.workspace,
            train=train,
            progress=progress,
        )
        nights = read_nights(self.registry, self.config.workspace)
        # Written before the commit and shown only after it, so that no kill can leave a version without its night.
        write_night(judged, night_of(judged, f"night {len(nights) + 1}", suites, self._refused_lines(nights)))
        return pipeline.commit_increment(self.registry, judged, self.config)

    def _refused_lines(self, nights: Sequence[Any]) -> list[str]:
        """Lines refused by imports that no earlier night has shown."""
        shown = {line for night in nights for line in night.refused_lines}
        refused = self.store.all_refused_lines()
        # With its folder: logs of different days often have one name.
        lines = [f"{'/'.join(Path(source).parts[-2:])} line {n}: {reason}" for source, n, reason in refused]
        return [line for line in lines if line not in shown]

    def _next_run(self, suites: Sequence[Suite], questions: Sequence[str]) -> Run:
        return next_run(self.config.workspace, self.registry, self.store, self.config, suites, questions)

    def _measurement(self, progress: Progress) -> Measurement:
        from incremental_llm.evaluation.measure import Measurement

        folder = self.config.workspace / "evaluations"
        return Measurement(folder, self.base.folder, self.registry.objects, progress)
