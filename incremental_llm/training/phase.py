"""One phase of an increment: an objective, its rows in their order, its trainer.

`plan_phase` runs while the model still is the previous policy: it fixes the order, pairs up KTO's mismatched
completions and stores the reference log-probabilities. `run_phase` trains.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from incremental_llm.errors import TrainingError
from incremental_llm.training.anchor import Anchor
from incremental_llm.training.batching import Row, TokenExample, training_order, with_dropout
from incremental_llm.training.checkpoint import SealCheckpoints, last_complete_checkpoint
from incremental_llm.training.distributed import agreed
from incremental_llm.training.losses import dpo_losses, kto_losses
from incremental_llm.training.objectives import TRAINERS
from incremental_llm.training.scoring import completion_logps
from incremental_llm.training.settings import PhaseSettings, TrainingSettings

log = logging.getLogger(__name__)

_SATURATION_SAMPLE = 16  # pairs whose starting loss decides whether a phase has anything left to learn


@dataclass(frozen=True)
class PhasePlan:
    """Rows in training order (columns of plain numbers), batch by batch; `reached` are the ids of their examples."""

    settings: PhaseSettings
    rows: list[dict[str, Any]]
    examples: int
    tokens: int
    reached: frozenset[str]

    @property
    def steps(self) -> int:
        return len(self.rows) // self.settings.batch_size


@dataclass(frozen=True)
class PhaseReport:
    """What a phase did. `losses`: one number a step; `note`: why it was skipped, empty if it ran."""

    objective: str
    examples: int
    steps: int
    tokens: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    anchor_kl: list[float] = field(default_factory=list)
    note: str = ""


def plan_phase(
    phase: PhaseSettings,
    kinds: dict[str, list[TokenExample]],
    model: Any,
    autocast: Any,
    settings: TrainingSettings,
    progress: Callable[[int, int, float | None], None],
) -> PhasePlan:
    """Lay out a phase. `model` must still be the previous policy: its log-probabilities become the reference."""
    examples = kinds[phase.kind]
    seed = settings.seed * 1000 + settings.phases.index(phase)
    builders: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "sft": partial(_sft_rows, dropout=phase.prompt_dropout, rng=random.Random(seed)),
        "dpo": _dpo_rows,
        "kto": _kto_rows,
    }
    epochs = phase.passes(len(examples))
    order = training_order([e.length for e in examples], epochs=epochs, batch_size=phase.batch_size, seed=seed)
    progress(0, 1, None)
    rows = builders[phase.objective](examples, order, lambda wanted: completion_logps(model, wanted, autocast))
    progress(1, 1, None)
    reached = frozenset(examples[i].id for batch in order for i in batch)
    return PhasePlan(phase, rows, len(examples), sum(map(_trained_tokens, rows)), reached)


Score = Callable[[Sequence[Row]], list[float]]


def _trained_tokens(row: Mapping[str, Any]) -> int:
    """Prompt and completion, for a pair twice."""
    completions = [row[name] for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in row]
    return sum(len(row["prompt_ids"]) + len(completion) for completion in completions)


def _sft_rows(
    examples: Sequence[TokenExample], order: list[list[int]], _score: Score, *, dropout: float, rng: random.Random
) -> list[dict[str, Any]]:
    rows = []
    for batch in order:
        labelled = sum(len(examples[i].rows[0].completion) for i in batch)
        for i in batch:
            row = with_dropout(examples[i], dropout, rng)
            rows.append(_tokens(row) | {"weight": examples[i].weight, "share": len(batch) / labelled})
    return rows


def _dpo_rows(examples: Sequence[TokenExample], order: list[list[int]], score: Score) -> list[dict[str, Any]]:
    used = sorted({i for batch in order for i in batch})
    logps = score([row for i in used for row in examples[i].rows])
    reference = {i: (logps[2 * k], logps[2 * k + 1]) for k, i in enumerate(used)}
    return [
        {
            "prompt_ids": list(examples[i].rows[0].prompt),
            "chosen_ids": list(examples[i].rows[0].completion),
            "rejected_ids": list(examples[i].rows[1].completion),
            "weight": examples[i].weight,
            "ref_chosen": reference[i][0],
            "ref_rejected": reference[i][1],
        }
        for batch in order
        for i in batch
    ]


def _kto_rows(examples: Sequence[TokenExample], order: list[list[int]], score: Score) -> list[dict[str, Any]]:
    """Completions are rotated by one within each whole batch for the KL baseline, whatever the number of processes.

    The downs are scaled so that together they weigh no more than the ups (Ethayarajh et al. 2024, eq. 8).
    """
    ups = sum(e.weight for e in examples if e.desirable)
    downs = sum(e.weight for e in examples if not e.desirable)
    down_scale = min(1.0, ups / downs) if downs else 1.0
    flat = [(i, _another(batch, k)) for batch in order for k, i in enumerate(batch)]
    wanted = sorted({(i, i) for i, _ in flat} | set(flat))
    scored = score([Row(examples[i].rows[0].prompt, examples[j].rows[0].completion) for i, j in wanted])
    reference = dict(zip(wanted, scored, strict=True))
    return [
        _tokens(examples[i].rows[0])
        | {
            "kl_completion_ids": list(examples[j].rows[0].completion),
            "desirable": examples[i].desirable,
            "weight": examples[i].weight * (1.0 if examples[i].desirable else down_scale),
            "ref_logps": reference[i, i],
            "ref_kl_logps": reference[i, j],
        }
        for i, j in flat
    ]


def _another(batch: Sequence[int], place: int) -> int:
    """The nearest example before `place`, around the batch, that is another one; the same if there is no other."""
    before = (batch[place - back] for back in range(1, len(batch)))
    return next((i for i in before if i != batch[place]), batch[place])


def _tokens(row: Row) -> dict[str, Any]:
    return {"prompt_ids": list(row.prompt), "completion_ids": list(row.completion)}


def run_phase(
    model: Any,
    tokenizer: Any,
    plan: PhasePlan,
    settings: TrainingSettings,
    anchor: Anchor | None,
    folder: Path,
    autocast: Any,
    progress: Callable[[str, int, int, float | None], None],
) -> PhaseReport:
    """Train one phase on the model's `default` adapter; continue from the last complete checkpoint if there is one."""
    started = time.monotonic()
    phase = plan.settings
    checkpoint = agreed(last_complete_checkpoint(folder))
    if checkpoint is None and (note := agreed(_nothing_to_learn(model, plan, autocast))):
        log.warning("%s", note)
        return PhaseReport(phase.objective, plan.examples, 0, 0, time.monotonic() - started, note=note)
    trainer_class = TRAINERS[phase.objective]
    config = trainer_class.config(**_arguments(plan, settings, folder))
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(plan.rows),
        processing_class=tokenizer,
        data_collator=trainer_class.collate,
        callbacks=[SealCheckpoints(), _Report(phase.objective, plan.steps, progress)],
    )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the trained adapter: the reference is stored with the rows instead
        model.set_adapter("default")
    trainer.remove_callback(PrinterCallback)
    trainer.anchor = anchor
    if checkpoint is not None:
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        trainer.micro_steps = step * config.gradient_accumulation_steps
        log.info("%s: continuing after step %d", phase.objective, step)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step != plan.steps:
        raise TrainingError(f"{phase.objective}: expected {plan.steps} steps, ran {trainer.state.global_step}.")
    history = [line for line in trainer.state.log_history if "objective" in line]
    return PhaseReport(
        objective=phase.objective,
        examples=plan.examples,
        steps=plan.steps,
        tokens=plan.tokens,
        seconds=time.monotonic() - started,
        losses=[line["objective"] for line in history],
        anchor_kl=[line["anchor_kl"] for line in history if "anchor_kl" in line],
    )


def _arguments(plan: PhasePlan, settings: TrainingSettings, folder: Path) -> dict[str, Any]:
    phase = plan.settings
    processes = PartialState().num_processes
    micro = settings.micro_batch or phase.batch_size // processes
    accumulation, rest = divmod(phase.batch_size, micro * processes)
    if rest or accumulation < 1:
        raise TrainingError(
            f"{phase.objective}: batch_size {phase.batch_size} cannot be cut into micro-batches of {micro} on "
            f"{processes} processes. Make it a multiple of {micro * processes}."
        )
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "max_steps": plan.steps,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "cosine",
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
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        **({} if phase.objective == "sft" else {"beta": phase.beta}),
    }


def _nothing_to_learn(model: Any, plan: PhasePlan, autocast: Any) -> str:
    """Why a phase is skipped, or an empty string: no ups to balance the downs, or saturated margins."""
    phase, sample = plan.settings, plan.rows[:_SATURATION_SAMPLE]
    if phase.objective == "sft":
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
