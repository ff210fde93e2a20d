"""The sides of the GPU measurement: the product's own path, and TRL's trainers, on the same rows in every step.

Packing aside: TRL cuts its own lines then, and their tokens are counted by the rows' mean.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from incremental_llm.adapters import varlen
from incremental_llm.training.adapter import adapter_in_autocast_dtype, autocast_of, new_adapter
from incremental_llm.training.batching import TokenExample, training_order
from incremental_llm.training.phase import PhaseContext, run_phase
from incremental_llm.training.plan import plan_phase
from incremental_llm.training.scoring import attach_labelled_head
from incremental_llm.training.settings import LoraSettings, PhaseSettings, TrainingSettings


@dataclass(frozen=True)
class Measured:
    """One row of the table: `objective` on a shape, `quantized` to nf4; DPO's pairs have these (prompt, answer)."""

    objective: str
    shape: str
    quantized: bool = False
    lengths: tuple[int, int] = (300, 100)
    batch_size: int = 32


@dataclass
class Side:
    """A side's steps: seconds of each timed step, and useful tokens of each."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak_gib: float = 0.0

    @property
    def rate(self) -> float:
        """Useful tokens a second."""
        return sum(self.tokens) / sum(self.seconds)


def settings_of(row: Measured, steps: int, count: int) -> TrainingSettings:
    phase = PhaseSettings(
        objective=row.objective, learning_rate=1e-4, epochs=steps * row.batch_size / count,
        batch_size=row.batch_size, saturated_below=0.0,
    )  # fmt: skip
    return TrainingSettings(
        precision="bf16", quantization="nf4" if row.quantized else "none", max_length=4096, save_steps=10_000,
        lora=LoraSettings(rank=16, alpha=32), anchor={"weight": 0.0}, phases=(phase,),
    )  # fmt: skip


def useful(examples: list[TokenExample]) -> int:
    """Tokens of prompts and answers, each once."""
    return sum(len(e.rows[0].prompt) + sum(len(one.completion) for one in e.rows) for e in examples)


class Steps(TrainerCallback):
    """Times steps between synchronisations; the first `warmup` are not counted."""

    def __init__(self, side: Side, tokens: Callable[[int], int], steps: int, warmup: int) -> None:
        self._side, self._tokens, self._steps, self._warmup = side, tokens, steps, warmup
        self._at = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        synchronize()
        self._at = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        synchronize()
        if state.global_step > self._warmup:
            self._side.seconds.append(time.perf_counter() - self._at)
            self._side.tokens.append(self._tokens(state.global_step - 1))
        if state.global_step >= self._warmup + self._steps:
            control.should_training_stop = True


def batches_of(row: Measured, examples: list[TokenExample], steps: int) -> list[list[TokenExample]]:
    """The rows of each optimizer step, for every side: the product's own order, by length within a window."""
    phase = settings_of(row, steps, len(examples)).phases[0]
    lengths, epochs = [example.length for example in examples], phase.passes(len(examples))
    order = training_order(lengths, epochs=epochs, batch_size=row.batch_size, seed=0)
    return [[examples[i] for i in batch] for batch in order]


def ours(row: Measured, model: Any, examples: list[TokenExample], steps: int, warmup: int, side: Side) -> None:
    """The product's own path: plan and phase."""
    settings = settings_of(row, steps + warmup, len(examples))
    own = model.config._attn_implementation
    attach_labelled_head(model)
    autocast, phase = autocast_of(model, settings), settings.phases[0]
    plan = plan_phase(phase, {phase.kind: examples}, model, autocast, settings, lambda *_: None)
    batches = batches_of(row, examples, steps + warmup)
    peft_model = new_adapter(model, settings)
    context = PhaseContext(
        model=peft_model,
        tokenizer=_tokenizer(),
        settings=settings,
        autocast=autocast,
        callbacks=(Steps(side, lambda step: useful(batches[step]), steps, warmup),),
        checkpoints=False,
    )
    with tempfile.TemporaryDirectory() as folder, adapter_in_autocast_dtype(peft_model, settings):
        run_phase(context, plan, Path(folder))
    peft_model.unload()
    del model.forward  # the labelled head
    model.set_attn_implementation(own)


def trl(row: Measured, model: Any, examples: list[TokenExample], steps: int, warmup: int, side: Side,
        options: dict[str, Any], *, shipped: bool) -> None:  # fmt: skip
    """TRL's trainer on the same rows; as shipped: eight at a time, with checkpointing."""
    packing = options.get("packing", False)
    size = options.pop("per_device_train_batch_size", min(8, row.batch_size) if shipped else row.batch_size)
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": size, "max_steps": steps + warmup, "bf16": True, "report_to": "none",
        "gradient_accumulation_steps": 1 if packing else row.batch_size // size, "learning_rate": 1e-4,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 10_000,
        "use_cpu": not torch.cuda.is_available(), "train_sampling_strategy": "random" if packing else "sequential",
        **options,
    }  # fmt: skip
    if not shipped:
        arguments["gradient_checkpointing"] = False
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if packing:
        varlen.register()
        model.set_attn_implementation(varlen.NAME)
    batches = batches_of(row, examples, steps + warmup)
    rows = examples if packing else [example for batch in batches for example in batch]
    with tempfile.TemporaryDirectory() as folder:
        trainer_class, config_class = (SFTTrainer, SFTConfig) if row.objective == "sft" else (_Pairs, DPOConfig)
        trainer = trainer_class(
            model=get_peft_model(model, adapter, autocast_adapter_dtype=shipped),
            args=config_class(output_dir=folder, **arguments),
            train_dataset=Dataset.from_list([_columns(row.objective, example) for example in rows]),
            processing_class=_tokenizer(),
        )
        a_line = useful(rows) / len(trainer.train_dataset)  # packed: a line holds several rows
        counted = (lambda step: round(a_line * size)) if packing else (lambda step: useful(batches[step]))
        trainer.add_callback(Steps(side, counted, steps, warmup))
        trainer.train()
        trainer.model.unload()
    model.set_attn_implementation("sdpa")


class _Pairs(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dataset  # token ids already


def _columns(objective: str, example: TokenExample) -> dict[str, Any]:
    prompt, completion = list(example.rows[0].prompt), list(example.rows[0].completion)
    if objective == "dpo":
        return {"prompt_ids": prompt, "chosen_ids": completion, "rejected_ids": list(example.rows[1].completion)}
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
