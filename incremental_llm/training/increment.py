"""One increment: a fresh LoRA adapter on the folded stack, trained phase by phase.

    previous policy  ->  reference log-probs, teachers' states  ->  phase, phase, ...  ->  adapter folder

The function reads from top to bottom. Every phase leaves a complete folder behind, so the same call with the same
arguments continues after the last complete phase, or inside a phase from its last complete checkpoint.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from incremental_llm.adapters.load import load_tokenizer, native_dtype
from incremental_llm.adapters.sharding import average_adapter_only, sharding
from incremental_llm.artifacts import is_complete, verify_folder
from incremental_llm.chat import Conversation
from incremental_llm.dataset.examples import Example, Kind
from incremental_llm.errors import ConfigError, NothingToTrainError
from incremental_llm.training import invariants
from incremental_llm.training.adapter import adapter_in_autocast_dtype
from incremental_llm.training.batching import Row, TokenExample, tokenize
from incremental_llm.training.checkpoint import remove_checkpoints
from incremental_llm.training.distributed import agreed
from incremental_llm.training.growth import (
    RECORD,
    consolidated,
    increments_behind,
    previous_policy,
    trained_values,
)
from incremental_llm.training.identity import check_same_run
from incremental_llm.training.interruption import Interruption
from incremental_llm.training.moments import Moments, moments_beside
from incremental_llm.training.phase import (
    PhaseContext,
    PhaseReport,
    Progress,
    first_micro_batch,
    micro_batches,
    run_phase,
)
from incremental_llm.training.plan import PhasePlan, plan_phase
from incremental_llm.training.policy import Ground, ground_of, memory_of, penalties_of, publish
from incremental_llm.training.regularizers import Regularizers
from incremental_llm.training.regularizers.memory import ReplayMemory
from incremental_llm.training.regularizers.stored import estimate_stored
from incremental_llm.training.settings import PhaseSettings, TrainingSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IncrementResult:
    """A trained adapter and how it came to be.

    It takes the place of the `replaces` last adapters of the stack; `increments` is how many increments it stands for.
    """

    adapter: Path
    phases: tuple[PhaseReport, ...]
    seconds: float
    tokens: int
    not_trained: tuple[str, ...] = ()  # ids of examples
    notes: tuple[str, ...] = field(default=())
    replaces: int = 0
    increments: int = 1


def train_increment(
    *,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    examples: Sequence[Example],
    anchors: Sequence[tuple[Conversation, str]],
    settings: TrainingSettings,
    out: Path,
    progress: Progress = lambda what, done, total, loss: None,
    replayed: Collection[str] = (),
    turns: Mapping[Kind, Sequence[Collection[str]]] | None = None,
    replayable: Collection[str] | None = None,
) -> IncrementResult:
    """Train one adapter on top of the frozen stack and return its folder (a plain PEFT adapter).

    Args:
        base_folder: the base model; adapter_folders: the stack, oldest first.
        examples: the mixture of new and replayed examples, of any kind; replayed: the ids of the latter.
        turns: the ids of replayed examples of a kind that are seen in the first epoch alone, in the second, and so on,
            from the first again after the last; others come in every epoch.
        replayable: the ids of all old examples that a later increment may replay; what is stored about others is
            forgotten. None: nothing is.
        anchors: everyday conversations with the answers of the anchor's teacher.
        out: the run's own folder; what a killed run left there is continued.

    Raises:
        NothingToTrainError: no phase has enough examples.
        ConfigError: a recipe that cannot be trained on a model that is spread over processes, or steps that cannot be
            cut into its micro-batches.
        TrainingError: an invariant broke (see invariants.py); nothing of the run is published.
        TrainingInterrupted: told to end by SIGTERM; the same call continues.
    """
    if sharding() and settings.quantization != "none":
        raise ConfigError(
            f"training.quantization: expected none with a model that is spread over processes, found "
            f"{settings.quantization}. Set it to none, or start with accelerate_config.yaml: then every process holds "
            "the whole 4-bit base."
        )
    settings = settings.at_dtype(native_dtype()).after(increments_behind(adapter_folders))
    replayed = frozenset(replayed)
    for phase in settings.phases:
        micro_batches(phase, first_micro_batch(phase, settings))  # before an hour of other phases
    job = _Job(
        base_folder, adapter_folders, examples, anchors, settings, out, progress, replayed, turns or {}, replayable
    )
    frozen_before = [verify_folder(folder) for folder in adapter_folders]
    check_same_run(out, base_folder, frozen_before, examples, anchors, settings, replayed, job.turns)
    done = out / "adapter"
    with job.interruption.listening():
        if not agreed(is_complete(done)):
            _train(job)
            job.interruption.check("after training")
    for folder, digest in zip(adapter_folders, frozen_before, strict=True):
        invariants.check_frozen(digest, verify_folder(folder))
    verify_folder(done)
    result = read_result(done)
    if settings.growth == "consolidate" and len(adapter_folders) + 1 > settings.consolidate_after:
        result = _consolidated([*adapter_folders, done], out / "consolidated", settings, base_folder.name)
    return result


@dataclass(frozen=True)
class _Job:
    """The arguments of an increment, under its settings once `auto` and schedules are decided."""

    base_folder: Path
    adapter_folders: Sequence[Path]
    examples: Sequence[Example]
    anchors: Sequence[tuple[Conversation, str]]
    settings: TrainingSettings
    out: Path
    progress: Progress
    replayed: Collection[str]
    turns: Mapping[Kind, Sequence[Collection[str]]]
    replayable: Collection[str] | None
    interruption: Interruption = field(default_factory=Interruption)


def _train(job: _Job) -> None:
    """Train all phases and publish the adapter as `out`/adapter."""
    started, settings, progress = time.monotonic(), job.settings, job.progress
    tokenizer = load_tokenizer(job.base_folder)
    kinds, too_long = tokenize_by_kind(tokenizer, job.examples, settings.max_length)
    phases = _phases_with_examples(kinds, settings)
    ground = ground_of(job.base_folder, job.adapter_folders, tokenizer, job.anchors, settings, progress)
    memory, notes = memory_of(job.adapter_folders, settings)
    plans = _planned(job, phases, kinds, ground, memory)
    probe = _probe_rows(kinds)
    reference_B = invariants.probe_logps(ground.peft_model or ground.model, probe, ground.autocast)

    model = ground.begin_adapter(settings, progress)
    penalties, penalty_notes = penalties_of(ground, job.adapter_folders, settings)
    invariants.check_only_adapter_trains(model)
    if sharding():
        average_adapter_only(model)
    frozen = invariants.frozen_digest(model)
    invariants.check_start(invariants.probe_logps(model, probe, ground.autocast), reference_B)
    context = PhaseContext(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        autocast=ground.autocast,
        regularizers=Regularizers(ground.anchor, memory if memory else None, penalties),
        progress=progress,
        interruption=job.interruption,
    )
    reports, moments = _run_phases(job, context, plans, ground, probe, reference_B)

    invariants.check_frozen(frozen, invariants.frozen_digest(model))
    invariants.check_only_adapter_trains(model)
    if job.adapter_folders and not memory and (settings.replay_kl.weight or settings.dark.weight):
        notes = [*notes, "replay_kl, dark: no old example was replayed that could be held, so there is no such term"]
    result = _result(job, ground, kinds, too_long, plans, reports, (*notes, *memory.notes, *penalty_notes))
    result = replace(result, seconds=time.monotonic() - started)
    right = [e for kind in kinds.values() for e in kind if e.desirable and e.id not in result.not_trained]
    progress("remembering this increment for the next ones", 0, 1, None)
    before = job.adapter_folders[-1] if job.adapter_folders else None
    stored = estimate_stored(model, right, before, settings, ground.autocast, job.replayed, job.replayable)
    told = asdict(result) | {"adapter": None}
    publish(model, result.adapter, job.base_folder.name, RECORD, told, moments, stored)


def _planned(
    job: _Job,
    phases: Sequence[PhaseSettings],
    kinds: Mapping[Kind, Sequence[TokenExample]],
    ground: Ground,
    memory: ReplayMemory,
) -> list[PhasePlan]:
    """Every phase laid out while the model still is the previous policy, which `memory` then takes the answers of."""
    plans = []
    for phase in phases:
        said = partial(job.progress, f"reference for {phase.objective}")
        turns = job.turns.get(phase.kind, ())
        plans.append(
            plan_phase(phase, kinds, ground.model, ground.autocast, job.settings, said, job.replayed, memory, turns)
        )
    if memory:
        job.progress("remembering the previous policy's replayed answers", 0, 1, None)
        memory.remember(ground.model, ground.autocast)
    return plans


def _run_phases(
    job: _Job, context: PhaseContext, plans: Sequence[PhasePlan], ground: Ground, probe: list[Row], reference_B: Any
) -> tuple[list[PhaseReport], dict[str, Moments]]:
    """Run what is not done yet, each phase against the reference of before the first.

    Returns:
        A report a plan, and the optimizers' moments by objective, where the adapter will go on.
    """
    model, settings = context.model, job.settings
    reports: list[PhaseReport] = []
    start = trained_values(model) if ground.going_on else None
    moments = moments_beside(ground.going_on) if ground.going_on else {}  # a fresh adapter begins every phase afresh
    with adapter_in_autocast_dtype(model, settings):
        for number, plan in enumerate(plans):
            objective: str = plan.settings.objective
            folder = job.out / f"phase{number}-{objective}"
            finished = folder / "done"
            if agreed(is_complete(finished)):
                reports.append(_take_up(model, finished))
                moments |= moments_beside(finished)
                continue
            job.interruption.check(f"before {objective}")
            with previous_policy(model, start):
                found_B = invariants.probe_logps(model, probe, context.autocast)
            invariants.check_reference(objective, reference_B, found_B)
            same = not any(report.steps for report in reports) and not (ground.going_on and settings.lora.dropout)
            report, state = run_phase(context, plan, folder, moments.get(objective), at_reference=same)
            reports.append(report)
            kept = {objective: state} if settings.growth == "continue" and state else {}
            moments |= kept
            publish(model, finished, job.base_folder.name, "phase.json", asdict(report), kept)
            remove_checkpoints(folder)
    return reports, moments


def _result(
    job: _Job,
    ground: Ground,
    kinds: Mapping[Kind, Sequence[TokenExample]],
    too_long: Sequence[str],
    plans: Sequence[PhasePlan],
    reports: Sequence[PhaseReport],
    notes: Sequence[str],
) -> IncrementResult:
    """What was done and what was not, seconds aside.

    Raises:
        NothingToTrainError: no phase ran.
    """
    skipped = [report.note for report in reports if report.note]
    if not any(report.steps for report in reports):
        raise NothingToTrainError("every phase was skipped: " + "; ".join(skipped))
    reached = {name for plan, report in zip(plans, reports, strict=True) if report.steps for name in plan.reached}
    return IncrementResult(
        adapter=job.out / "adapter",
        phases=tuple(reports),
        seconds=0.0,
        tokens=sum(report.tokens for report in reports),
        not_trained=tuple(e.id for e in job.examples if e.id not in reached),
        notes=(
            *_left_out(job.examples, too_long, reached, job.settings),
            *_skipped(kinds, job.settings),
            *skipped,
            *_settled(plans),
            *notes,
        ),
        replaces=1 if ground.going_on else 0,
        increments=1 + (increments_behind([ground.going_on]) if ground.going_on else 0),
    )


def _consolidated(
    adapter_folders: Sequence[Path], target: Path, settings: TrainingSettings, base_name: str
) -> IncrementResult:
    """All adapters as one, written on the first process; the others wait for it."""
    if PartialState().is_main_process and not is_complete(target):
        consolidated(adapter_folders, target, settings, base_name)
    PartialState().wait_for_everyone()
    verify_folder(target)
    return read_result(target)


def _take_up(model: Any, finished: Path) -> PhaseReport:
    """The report of a phase that an earlier run finished; the model's adapter becomes what that phase left."""
    verify_folder(finished)
    set_peft_model_state_dict(model, load_file(finished / "adapter_model.safetensors"))
    return PhaseReport(**json.loads((finished / "phase.json").read_text(encoding="utf-8")))


def read_result(adapter: Path) -> IncrementResult:
    """The result of a finished run, from the adapter's own folder."""
    stored = json.loads((adapter / RECORD).read_text(encoding="utf-8"))
    phases = tuple(PhaseReport(**phase) for phase in stored.pop("phases"))
    stored |= {"adapter": adapter, "not_trained": tuple(stored["not_trained"]), "notes": tuple(stored["notes"])}
    return IncrementResult(phases=phases, **stored)


def tokenize_by_kind(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> tuple[dict[Kind, list[TokenExample]], list[str]]:
    kinds: dict[Kind, list[TokenExample]] = {"sft": [], "pair": [], "unpaired": []}
    too_long = []
    for example in examples:
        tokens = tokenize(tokenizer, example)
        if tokens.length > max_length:
            too_long.append(example.id)
        else:
            kinds[example.kind].append(tokens)
    if too_long:
        log.warning(
            "%d of %d examples are longer than %d tokens and left out", len(too_long), len(examples), max_length
        )
    return kinds, too_long


def _phases_with_examples(
    kinds: Mapping[Kind, Sequence[TokenExample]], settings: TrainingSettings
) -> list[PhaseSettings]:
    enough = [p for p in settings.phases if len(kinds[p.kind]) >= p.minimum]
    if not enough:
        counts = ", ".join(f"{len(rows)} {kind}" for kind, rows in kinds.items())
        raise NothingToTrainError(f"nothing to train: {counts}. Collect more feedback, or lower `minimum` of a phase.")
    return enough


def _left_out(
    examples: Sequence[Example], too_long: Sequence[str], reached: Collection[str], settings: TrainingSettings
) -> list[str]:
    """The examples that no step saw, in words."""
    late = len(examples) - len(too_long) - sum(e.id in reached for e in examples)
    counts = (
        (len(too_long), f"are longer than training.max_length ({settings.max_length} tokens)"),
        (late, "were reached by no step: phases of less than an epoch, ended by max_steps, or skipped"),
    )
    return [f"{count} of {len(examples)} examples {why}" for count, why in counts if count]


def _skipped(kinds: Mapping[Kind, Sequence[TokenExample]], settings: TrainingSettings) -> list[str]:
    """The phases that had too few examples, in words; none at all is no news."""
    return [
        f"{phase.objective}: skipped, {len(kinds[phase.kind])} examples, {phase.minimum} needed"
        for phase in settings.phases
        if 0 < len(kinds[phase.kind]) < phase.minimum
    ]


def _settled(plans: Sequence[PhasePlan]) -> list[str]:
    """How many replayed pairs are pairs no more, in words."""
    count = sum(len(plan.settled) for plan in plans)
    return [f"{count} replayed pairs are settled: NLL and KL on their chosen answers, no DPO"] if count else []


def _probe_rows(kinds: dict[Kind, list[TokenExample]]) -> list[Row]:
    """Two completions to score at the start of every phase: a real pair if there is one."""
    if kinds["pair"]:
        return list(kinds["pair"][0].rows)
    rows = [example.rows[0] for kind in kinds.values() for example in kind]
    return [rows[0], rows[-1]]
