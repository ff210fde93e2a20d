"""The rival: TRL's trainers as a person would set them up by hand for one night, on the same rows.

In fp32 and, where the machine computes it natively, in bf16: weights in bf16, autocast, adapters in fp32 (TRL makes
them bf16 for a 4-bit base; they are kept in fp32 like ours). Order, learning rate and seed are ours, so that losses can
be compared; they cost nothing, and the order, by length, spares TRL some padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from training import data
from training.rows import Shape, Variant
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from incremental_llm.adapters.allocator import keep_freed_memory
from incremental_llm.training.batching import TokenExample
from incremental_llm.training.settings import TrainingSettings


class _Tokenised:
    """TRL's preference trainers tokenise texts themselves; these get the ids. Nothing else is changed."""

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dataset


class _DPO(_Tokenised, DPOTrainer): ...


class _KTO(_Tokenised, KTOTrainer): ...


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRAINERS = {"sft": (SFTTrainer, SFTConfig), "dpo": (_DPO, DPOConfig), "kto": (_KTO, KTOConfig)}


def train_with(variant: Variant) -> Callable[..., None]:
    """A function with `ours.train`'s arguments that trains with TRL and these options."""

    def train(
        gate: Any,
        shape: Shape,
        base: Path,
        stack: list[Path],
        tokenizer: Any,
        examples: list[TokenExample],
        settings: TrainingSettings,
        folder: Path,
    ) -> None:
        if variant.allocator:
            keep_freed_memory()
        started = time.perf_counter()
        model = _model(base, stack, shape, variant)
        loaded = time.perf_counter()
        steps = round(settings.phases[0].epochs * len(examples)) // shape.batch_size
        rows = _rows(shape.objective, data.steps_of(examples, shape.batch_size, steps))
        trainer_class, config_class = TRAINERS[shape.objective]
        trainer = trainer_class(
            model=model,
            args=config_class(**(_arguments(shape, steps, settings, stack, folder, variant) | variant.options)),
            train_dataset=Dataset.from_list([_columns(shape.objective, row) for row in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=settings.lora.rank,
                lora_alpha=settings.lora.alpha,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        made = time.perf_counter()
        trainer.add_callback(_Steps(gate, trainer))
        gate.open(load=loaded - started, reference=made - loaded, digest=data.digest(rows))
        trainer.train()

    return train


def _model(base: Path, stack: list[Path], shape: Shape, variant: Variant) -> Any:
    dtype = DTYPES[variant.precision]
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": variant.attention}
    if shape.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    for folder in stack:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model


def _rows(objective: str, steps: list[list[TokenExample]]) -> list[dict[str, Any]]:
    """Rows under our names; KTO's completions turned by one within a step, as TRL does it."""
    rows: list[dict[str, Any]] = []
    for batch in steps:
        for place, example in enumerate(batch):
            row: dict[str, Any] = {"prompt_ids": list(example.rows[0].prompt)}
            completions = [list(one.completion) for one in example.rows]
            if objective == "dpo":
                rows.append(row | {"chosen_ids": completions[0], "rejected_ids": completions[1]})
                continue
            row["completion_ids"] = completions[0]
            if objective == "kto":
                row |= {
                    "kl_completion_ids": list(batch[place - 1].rows[0].completion),
                    "desirable": example.desirable,
                }
            rows.append(row)
    return rows


def _columns(objective: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row under TRL's names."""
    if objective == "dpo":
        return row
    if objective == "kto":
        renamed = {"kl_completion_ids": "KL_completion_ids", "desirable": "label"}
        return {renamed.get(name, name): value for name, value in row.items()}
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _arguments(
    shape: Shape, steps: int, settings: TrainingSettings, stack: list[Path], folder: Path, variant: Variant
) -> dict[str, Any]:
    phase = settings.phases[0]
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": shape.batch_size,
        "max_steps": steps,
        "bf16": variant.precision == "bf16",
        "train_sampling_strategy": "sequential",
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(steps * phase.warmup),
        "seed": settings.seed * 1000 + len(stack),  # what the product's new adapter starts from
        "report_to": "none",
        "disable_tqdm": True,
    }


class _Steps(TrainerCallback):
    """Stops at the gate after every step, with the loss that TRL returned for it."""

    def __init__(self, gate: Any, trainer: Any) -> None:
        self._gate, self._parts = gate, list[torch.Tensor]()
        inner = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = inner(*args, **kwargs)
            self._parts.append(loss)
            return loss

        trainer.training_step = training_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        loss = sum(part.item() for part in self._parts)
        self._parts.clear()
        self._gate.passed(loss)
