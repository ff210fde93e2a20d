"""Our side: the product's own functions, in the order in which `train_increment` calls them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from training import data
from training.rows import Shape

from incremental_llm.adapters.load import DTYPES, load_stack
from incremental_llm.training.adapter import adapter_in_autocast_dtype, autocast_of, new_adapter, save_adapter
from incremental_llm.training.batching import TokenExample
from incremental_llm.training.phase import PhaseContext, run_phase
from incremental_llm.training.plan import plan_phase
from incremental_llm.training.scoring import attach_labelled_head
from incremental_llm.training.settings import TrainingSettings


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
    """Fold, plan, and train behind the gate; it does not return."""
    started = time.perf_counter()
    model = load_stack(base, stack, dtype=DTYPES[settings.dtype], quantization=shape.quantization, to_train=True)
    loaded = time.perf_counter()
    attach_labelled_head(model)
    autocast, phase = autocast_of(model, settings), settings.phases[0]
    planning = time.perf_counter()
    plan = plan_phase(phase, {phase.kind: examples}, model, autocast, settings, lambda *_: None)
    planned = time.perf_counter()
    peft_model = new_adapter(model, settings, below=len(stack))
    gate.open(
        load=loaded - started,
        reference=planned - planning,
        pairs=len({id(example) for example in examples}),
        digest=data.digest(plan.rows),
        tokens=plan.tokens,
    )
    context = PhaseContext(
        model=peft_model,
        tokenizer=tokenizer,
        settings=settings,
        autocast=autocast,
        progress=lambda *said: gate.passed(float(said[3])),
    )
    with adapter_in_autocast_dtype(peft_model, settings):
        run_phase(context, plan, folder)


def make_stack(base: Path, depth: int, folder: Path) -> list[Path]:
    """Adapters of the product's default shape, each a change of about 0.3 % of the weights; made once a measurement."""
    import torch

    settings = TrainingSettings(precision="fp32")
    made = []
    model = load_stack(base, [], dtype=torch.float32)
    for number in range(depth):
        peft_model = new_adapter(model, settings, below=number)
        for name, parameter in peft_model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=1e-3)
        made.append(folder / f"adapter{number}")
        save_adapter(peft_model, made[-1], base.name)
        model = peft_model.unload()
    return made
