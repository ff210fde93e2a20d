"""One increment: a fresh LoRA adapter on the folded stack, trained phase by phase.

    previous policy  ->  reference log-probs, teachers' states  ->  phase, phase, ...  ->  adapter folder

The function reads from top to bottom. Every phase leaves a complete folder behind, so the same call with the same
arguments continues after the last complete phase, or inside a phase from its last complete checkpoint.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
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
from incremental_llm.dataset.examples import Example
from incremental_llm.errors import ConfigError, NothingToTrainError
from incremental_llm.training import invariants
from incremental_llm.training.adapter import adapter_in_autocast_dtype, autocast_of, new_adapter
from incremental_llm.training.batching import Row, TokenExample, tokenize
from incremental_llm.training.checkpoint import remove_checkpoints
from incremental_llm.training.distributed import agreed
from incremental_llm.training.growth import (
    RECORD,
    consolidated,
    continued_adapter,
    increments_behind,
    previous_policy,
    split_stack,
    trained_values,
)
from incremental_llm.training.identity import check_same_run
from incremental_llm.training.interruption import Interruption
from incremental_llm.training.moments import moments_beside
from incremental_llm.training.null_space import start_in_null_space
from incremental_llm.training.phase import PhaseContext, PhaseReport, Progress, run_phase
from incremental_llm.training.plan import PhasePlan, plan_phase
from incremental_llm.training.policy import (
    anchor_of,
    load_policy,
    memory_of,
    penalties_of,
    publish,
    remember_base,
)
from incremental_llm.training.regularizers import Regularizers
from incremental_llm.training.regularizers.stored import estimate_stored
from incremental_llm.training.settings import TrainingSettings

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
) -> IncrementResult:
    """Train one adapter on top of the frozen stack and return its folder (a plain PEFT adapter).

    Args:
        base_folder: the base model; adapter_folders: the stack, oldest first.
        examples: the mixture of new and replayed examples, of any kind; replayed: the ids of the latter.
        anchors: everyday conversations with the answers of the anchor's teacher.
        out: the run's own folder; what a killed run left there is continued.

    Raises:
        NothingToTrainError: no phase has enough examples.
        ConfigError: a recipe that cannot be trained on a model that is spread over processes.
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
    frozen_before = [verify_folder(folder) for folder in adapter_folders]
    check_same_run(out, base_folder, frozen_before, examples, anchors, settings, replayed)
    done = out / "adapter"
    interruption = Interruption()
    with interruption.listening():
        if not agreed(is_complete(done)):
            _train(base_folder, adapter_folders, examples, anchors, settings, out, progress, replayed, interruption)
            interruption.check("after training")
    for folder, digest in zip(adapter_folders, frozen_before, strict=True):
        invariants.check_frozen(digest, verify_folder(folder))
    verify_folder(done)
    result = read_result(done)
    if settings.growth == "consolidate" and len(adapter_folders) + 1 > settings.consolidate_after:
        result = _consolidated([*adapter_folders, done], out / "consolidated", settings, base_folder.name)
    return result


def _train(
    base_folder: Path,
    adapter_folders: Sequence[Path],
    examples: Sequence[Example],
    anchors: Sequence[tuple[Conversation, str]],
    settings: TrainingSettings,
    out: Path,
    progress: Progress,
    replayed: Collection[str],
    interruption: Interruption,
) -> None:
    """Train all phases and publish the adapter as `out`/adapter."""
    started = time.monotonic()
    frozen_folders, going_on = split_stack(adapter_folders, settings)
    tokenizer = load_tokenizer(base_folder)
    kinds, too_long = tokenize_by_kind(tokenizer, examples, settings.max_length)
    phases = _phases_with_examples(kinds, settings)
    anchor = anchor_of(tokenizer, anchors, settings)
    teacher_is_base = settings.anchor.teacher == "base" and bool(adapter_folders)
    if anchor is not None and teacher_is_base:
        progress("remembering the base's everyday answers", 0, 1, None)
        remember_base(anchor, base_folder, settings)
    progress("loading the previous policy", 0, 1, None)
    model = load_policy(base_folder, frozen_folders, settings)
    autocast = autocast_of(model, settings)
    peft_model = continued_adapter(model, going_on, settings) if going_on else None  # inside of `model` from here on
    if anchor is not None and not teacher_is_base:
        progress("remembering the previous policy's everyday answers", 0, 1, None)
        anchor.remember_teacher(model, autocast)
    memory, memory_notes = memory_of(adapter_folders, settings)
    plans = []
    for phase in phases:
        said = partial(progress, f"reference for {phase.objective}")
        plans.append(plan_phase(phase, kinds, model, autocast, settings, said, replayed, memory))
    if memory:
        progress("remembering the previous policy's replayed answers", 0, 1, None)
        memory.remember(model, autocast)
    probe = _probe_rows(kinds)
    reference_B = invariants.probe_logps(model, probe, autocast)

    if peft_model is None:
        peft_model = new_adapter(model, settings, below=len(frozen_folders))
        if settings.lora.null_space is not None and anchor is not None:
            progress("turning the adapter away from everyday inputs", 0, 1, None)
            start_in_null_space(peft_model, anchor.rows, settings.lora.null_space, autocast)
    penalties, penalty_notes = penalties_of(peft_model, frozen_folders, going_on, adapter_folders, settings)
    start = trained_values(peft_model) if going_on else None
    invariants.check_only_adapter_trains(peft_model)
    if sharding():
        average_adapter_only(peft_model)
    frozen = invariants.frozen_digest(peft_model)
    invariants.check_start(invariants.probe_logps(peft_model, probe, autocast), reference_B)

    context = PhaseContext(
        model=peft_model,
        tokenizer=tokenizer,
        settings=settings,
        autocast=autocast,
        regularizers=Regularizers(anchor=anchor, memory=memory if memory else None, penalties=penalties),
        progress=progress,
        interruption=interruption,
    )
    reports: list[PhaseReport] = []
    goes_on = settings.growth == "continue"
    all_moments = moments_beside(going_on) if going_on else {}  # a fresh adapter begins every phase afresh
    with adapter_in_autocast_dtype(peft_model, settings):
        for number, plan in enumerate(plans):
            objective: str = plan.settings.objective
            folder = out / f"phase{number}-{objective}"
            finished = folder / "done"
            if agreed(is_complete(finished)):
                reports.append(_take_up(peft_model, finished))
                all_moments |= moments_beside(finished)
                continue
            interruption.check(f"before {objective}")
            with previous_policy(peft_model, start):
                found_B = invariants.probe_logps(peft_model, probe, autocast)
            invariants.check_reference(objective, reference_B, found_B)
            report, moments = run_phase(context, plan, folder, all_moments.get(objective))
            reports.append(report)
            kept = {objective: moments} if goes_on and moments else {}
            all_moments |= kept
            publish(peft_model, finished, base_folder.name, "phase.json", asdict(report), kept)
            remove_checkpoints(folder)

    invariants.check_frozen(frozen, invariants.frozen_digest(peft_model))
    invariants.check_only_adapter_trains(peft_model)
    skipped = [report.note for report in reports if report.note]
    reached = {name for plan, report in zip(plans, reports, strict=True) if report.steps for name in plan.reached}
    if not any(report.steps for report in reports):
        raise NothingToTrainError("every phase was skipped: " + "; ".join(skipped))
    result = IncrementResult(
        adapter=out / "adapter",
        phases=tuple(reports),
        seconds=time.monotonic() - started,
        tokens=sum(report.tokens for report in reports),
        not_trained=tuple(e.id for e in examples if e.id not in reached),
        notes=(
            *_left_out(examples, too_long, reached, settings),
            *_skipped(kinds, settings),
            *skipped,
            *_settled(plans),
            *memory_notes,
            *memory.notes,
            *penalty_notes,
        ),
        replaces=1 if going_on else 0,
        increments=1 + (increments_behind([going_on]) if going_on else 0),
    )
    right = [e for kind in kinds.values() for e in kind if e.desirable and e.id in reached]
    progress("remembering this increment for the next ones", 0, 1, None)
    before = adapter_folders[-1] if adapter_folders else None
    stored = estimate_stored(peft_model, right, before, settings, autocast, replayed)
    told = asdict(result) | {"adapter": None}
    publish(peft_model, result.adapter, base_folder.name, RECORD, told, all_moments, stored)


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
) -> tuple[dict[str, list[TokenExample]], list[str]]:
    kinds: dict[str, list[TokenExample]] = {"sft": [], "pair": [], "unpaired": []}
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


def _phases_with_examples(kinds: dict[str, list[TokenExample]], settings: TrainingSettings) -> list[Any]:
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


def _skipped(kinds: dict[str, list[TokenExample]], settings: TrainingSettings) -> list[str]:
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


def _probe_rows(kinds: dict[str, list[TokenExample]]) -> list[Row]:
    """Two completions to score at the start of every phase: a real pair if there is one."""
    if kinds["pair"]:
        return list(kinds["pair"][0].rows)
    rows = [example.rows[0] for kind in kinds.values() for example in kind]
    return [rows[0], rows[-1]]
