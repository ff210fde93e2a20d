"""One phase of an increment: an objective's trainer over the rows that `plan.py` laid out.

A phase survives what nights bring: it continues from its last complete checkpoint, writes one and stops when it is told
to end (SIGTERM), and halves its micro-batch when memory runs out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from incremental_llm.errors import ConfigError, TrainingError, TrainingInterrupted
from incremental_llm.training import invariants
from incremental_llm.training.batching import Row
from incremental_llm.training.checkpoint import SealCheckpoints, last_complete_checkpoint
from incremental_llm.training.distributed import agreed
from incremental_llm.training.growth import set_values, trained_values
from incremental_llm.training.interruption import Interruption, StopWhenTold
from incremental_llm.training.losses import dpo_losses, kto_losses
from incremental_llm.training.moments import Moments, moments_of
from incremental_llm.training.objectives import TRAINERS
from incremental_llm.training.plan import PhasePlan
from incremental_llm.training.regularizers import Regularizers
from incremental_llm.training.scoring import completion_logps, free_memory, is_out_of_memory
from incremental_llm.training.settings import PhaseSettings, TrainingSettings

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float | None], None]

_LEAST = {"sft": 1, "dpo": 1, "kto": 2}  # examples in a micro-batch: TRL refuses KTO on a single row
_SATURATION_SAMPLE = 16  # pairs whose starting loss decides whether a phase has anything left to learn


@dataclass(frozen=True)
class PhaseReport:
    """What a phase did. `losses`: the objective's, one number a step; `terms`: those of each regulariser, likewise;
    `note`: why it was skipped, empty if it ran."""

    objective: str
    examples: int
    steps: int
    tokens: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def anchor_kl(self) -> list[float]:
        """The anchor's term, one number a step; empty without an anchor."""
        return self.terms.get("anchor_kl", [])


_TERMS = ("anchor_kl", "replay_kl", "dark", "ewc", "orthogonal")


@dataclass(frozen=True)
class PhaseContext:
    """What all phases of an increment share. Without `checkpoints` nothing is written, and a cut phase is lost.

    `callbacks` are the caller's own, for the trainer of every phase.
    """

    model: Any
    tokenizer: Any
    settings: TrainingSettings
    autocast: Any
    regularizers: Regularizers = field(default_factory=Regularizers)
    progress: Progress = lambda what, done, total, loss: None
    interruption: Interruption = field(default_factory=Interruption)
    checkpoints: bool = True
    callbacks: tuple[TrainerCallback, ...] = ()


def run_phase(
    context: PhaseContext, plan: PhasePlan, folder: Path, moments: Moments | None = None, *, at_reference: bool = False
) -> tuple[PhaseReport, Moments]:
    """Train one phase on the model's `default` adapter; continue from the last complete checkpoint if there is one.

    Args:
        moments: the optimizer's state to start with, where the adapter goes on from an earlier increment.
        at_reference: the model still is the reference, so that its first step must find what is stored with the rows.

    Returns:
        The report, and the optimizer's state at the end (empty where the phase was skipped).

    Raises:
        TrainingError: an invariant broke, or one example a step does not fit in memory.
        TrainingInterrupted: the process was told to end; a checkpoint was written, and the same call continues.
    """
    started = time.monotonic()
    phase, model = plan.settings, context.model
    checkpoint = agreed(last_complete_checkpoint(folder))
    if checkpoint is None and (note := agreed(_nothing_to_learn(model, plan, context.autocast))):
        log.warning("%s", note)
        return PhaseReport(phase.objective, plan.examples, 0, 0, time.monotonic() - started, note=note), {}
    start = trained_values(model)
    micro = first_micro_batch(phase, context.settings)
    while True:
        try:
            trainer = _trained(context, plan, folder, micro, moments, start, at_reference)
            break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            micro = _halved(micro, phase.objective, error)
        _forget_failed_try(model, start)  # outside of the handler: the error's traceback holds the activations
    invariants.check_weights(model, phase.objective)
    model.eval()  # as it came: what is asked of it between phases is asked without dropout
    history = [line for line in trainer.state.log_history if "objective" in line]
    report = PhaseReport(
        objective=phase.objective,
        examples=plan.examples,
        steps=plan.steps,
        tokens=plan.tokens,
        seconds=time.monotonic() - started,
        losses=[line["objective"] for line in history],
        terms={name: [line[name] for line in history] for name in _TERMS if history and name in history[0]},
    )
    return report, moments_of(trainer.optimizer, model)


def _trained(
    context: PhaseContext,
    plan: PhasePlan,
    folder: Path,
    micro: int,
    moments: Moments | None,
    start: dict[str, torch.Tensor],
    at_reference: bool,
) -> Any:
    """The phase's trainer after its last step; `start` are the adapter's values before its first."""
    phase, model = plan.settings, context.model
    trainer_class = TRAINERS[phase.objective]
    config = trainer_class.config(**_arguments(plan, context, folder, micro))
    config._n_gpu = min(1, config.n_gpu)  # one process takes one GPU: DataParallel would multiply the batch
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(plan.rows),
        processing_class=context.tokenizer,
        data_collator=trainer_class.collate,
        callbacks=[
            StopWhenTold(context.interruption),
            SealCheckpoints(),
            _Report(phase.objective, plan.steps, context.progress),
            *context.callbacks,
        ],
    )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the trained adapter: the reference is stored with the rows instead
        model.set_adapter("default")
    _as_it_was(model, start)
    trainer.remove_callback(PrinterCallback)
    trainer.regularizers, trainer.phase, trainer.moments = context.regularizers, phase, moments
    checkpoint = agreed(last_complete_checkpoint(folder))
    if checkpoint is not None:
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        trainer.micro_steps = step * config.gradient_accumulation_steps
        log.info("%s: continuing after step %d", phase.objective, step)
    trainer.at_reference = at_reference and checkpoint is None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    done = trainer.state.global_step
    if done < plan.steps and context.interruption.told:
        raise TrainingInterrupted(
            f"{phase.objective}: told to end, stopped after step {done} of {plan.steps} with a checkpoint. "
            "The same command continues from it."
        )
    if done != plan.steps:
        raise TrainingError(f"{phase.objective}: expected {plan.steps} steps, ran {done}.")
    return trainer


def first_micro_batch(phase: PhaseSettings, settings: TrainingSettings) -> int:
    """The examples that a process takes at once, before memory has been asked."""
    return settings.micro_batch or max(1, phase.batch_size // PartialState().num_processes)


def micro_batches(phase: PhaseSettings, micro: int) -> int:
    """How many micro-batches of `micro` examples a process has in a step.

    Raises:
        ConfigError: the batch cannot be cut so.
    """
    processes: int = PartialState().num_processes
    count, rest = divmod(phase.batch_size, micro * processes)
    if rest or count < 1:
        raise ConfigError(
            f"{phase.objective}: expected a batch_size that is a multiple of {micro * processes}, micro-batches of "
            f"{micro} on {processes} processes, found {phase.batch_size}. Change it, or training.micro_batch."
        )
    if micro < _LEAST[phase.objective]:
        raise ConfigError(
            f"{phase.objective}: expected micro-batches of at least {_LEAST[phase.objective]} examples, which TRL "
            f"needs, found {micro}. Raise training.micro_batch, or the phase's batch_size on several processes."
        )
    return count


def _halved(micro: int, objective: str, error: BaseException) -> int:
    """At most half the micro-batch; the step keeps its examples and its loss, in more parts.

    Raises:
        TrainingError: it cannot be smaller, or other processes would have to know.
    """
    smaller = max((size for size in range(_LEAST[objective], micro // 2 + 1) if micro % size == 0), default=None)
    if smaller is None or PartialState().num_processes > 1:
        told = f"several processes: set training.micro_batch to {smaller}"
        advice = "it cannot be cut further" if smaller is None else told
        raise TrainingError(
            f"{objective}: out of memory with {micro} examples at once ({advice}). Lower training.max_length, or "
            "take a smaller base or quantization: nf4."
        ) from error
    log.warning("%s: out of memory with %d examples at once, going on with %d", objective, micro, smaller)
    return smaller


def _as_it_was(model: Any, start: dict[str, torch.Tensor]) -> None:
    """Undo what TRL does to the adapter of a 4-bit base: in bf16, Adam's small steps would be rounded away."""
    for name, parameter in model.named_parameters():
        if name in start and parameter.dtype != start[name].dtype:
            parameter.data = start[name].clone()


def _forget_failed_try(model: Any, start: dict[str, torch.Tensor]) -> None:
    """The adapter as it was before the try; what the try still holds is let go."""
    set_values(model, start)
    model.zero_grad()
    free_memory()


def _arguments(plan: PhasePlan, context: PhaseContext, folder: Path, micro: int) -> dict[str, Any]:
    phase, settings = plan.settings, context.settings
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": micro_batches(phase, micro),
        "max_steps": plan.steps,
        "learning_rate": phase.learning_rate,
        "warmup_steps": round(plan.steps * phase.warmup),
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "seed": settings.seed,
        "bf16": settings.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": False,
        "gradient_checkpointing": None,  # TRL turns this deprecated alias on by default
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if context.checkpoints else "no",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        # TRL would set every dropout to 0 here, and so in the phases that follow in this process, but not in another.
        **({} if phase.objective == "sft" else {"beta": phase.beta, "disable_dropout": False}),
    }


def _nothing_to_learn(model: Any, plan: PhasePlan, autocast: Any) -> str:
    """Why a phase is skipped, or an empty string: no ups to balance the downs, or saturated margins."""
    phase = plan.settings
    sample = [row for row in plan.rows if row.get("rejected_ids") != []][:_SATURATION_SAMPLE]
    if phase.objective == "sft" or not sample:
        return ""
    if phase.objective == "kto" and not any(row["desirable"] for row in plan.rows):
        return "kto: skipped, there are only thumbs down; training on downs alone destroys a model"
    loss = (_starting_kto if phase.objective == "kto" else _starting_dpo)(model, sample, phase.beta, autocast)
    if loss < phase.saturated_below:
        below = f"its loss starts at {loss:.2g} (below {phase.saturated_below})"
        return f"{phase.objective}: skipped, {below}: the margins are saturated"
    return ""


def _starting_dpo(model: Any, rows: Sequence[dict[str, Any]], beta: float, autocast: Any) -> float:
    sides = [Row(tuple(r["prompt_ids"]), tuple(r[side])) for side in ("chosen_ids", "rejected_ids") for r in rows]
    chosen_B, rejected_B = torch.tensor(completion_logps(model, sides, autocast)).chunk(2)
    ref_chosen_B, ref_rejected_B = (torch.tensor([r[f"ref_{side}"] for r in rows]) for side in ("chosen", "rejected"))
    return float(dpo_losses(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta).mean())


def _starting_kto(model: Any, rows: Sequence[dict[str, Any]], beta: float, autocast: Any) -> float:
    """With 0, its lower bound, as the KL baseline."""
    said = [Row(tuple(r["prompt_ids"]), tuple(r["completion_ids"])) for r in rows]
    logps_B, ref_B = torch.tensor(completion_logps(model, said, autocast)), torch.tensor([r["ref_logps"] for r in rows])
    wanted_B = torch.tensor([r["desirable"] for r in rows])
    return float(kto_losses(logps_B, ref_B, wanted_B, torch.zeros(()), beta).mean())


class _Report(TrainerCallback):  # type: ignore[misc]
    def __init__(self, objective: str, steps: int, progress: Callable[[str, int, int, float | None], None]) -> None:
        self.objective, self.steps, self.progress = objective, steps, progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kwargs: Any) -> None:
        if logs and "objective" in logs:
            self.progress(f"training {self.objective}", state.global_step, self.steps, logs["objective"])
