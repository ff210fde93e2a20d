"""Plain sequential fine-tuning of one adapter: the comparison that every continual method has to beat.

One adapter goes on from increment to increment by SFT alone. There is no frozen stack, no replay and no anchor, so this
shows what forgetting costs; it is a baseline, not a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from incremental_llm.adapters.load import DTYPES, load_base, native_dtype
from incremental_llm.artifacts import is_complete, staged_folder
from incremental_llm.dataset.examples import SftExample
from incremental_llm.training.adapter import adapter_in_autocast_dtype, autocast_of, new_adapter, save_adapter
from incremental_llm.training.increment import tokenize_by_kind
from incremental_llm.training.phase import plan_phase, run_phase
from incremental_llm.training.scoring import attach_labelled_head
from incremental_llm.training.settings import TrainingSettings


def train_sequentially(
    base_folder: Path,
    increments: Sequence[Sequence[SftExample]],
    tokenizer: Any,
    settings: TrainingSettings,
    out: Path,
    progress: Callable[[str, int, int, float | None], None],
) -> list[Path]:
    """Train one adapter through all increments; returns its state after each, as adapter folders."""
    settings = settings.at_dtype(native_dtype())
    model = load_base(base_folder, dtype=DTYPES[settings.dtype], to_train=True)
    attach_labelled_head(model)
    peft_model = new_adapter(model, settings)
    autocast = autocast_of(model, settings)
    phase = next(phase for phase in settings.phases if phase.objective == "sft")
    folders = []
    with adapter_in_autocast_dtype(peft_model, settings):
        for number, examples in enumerate(increments, 1):
            folder = out / f"increment{number}"
            if is_complete(folder):
                set_peft_model_state_dict(peft_model, load_file(folder / "adapter_model.safetensors"))
            else:
                kinds, _too_long = tokenize_by_kind(tokenizer, examples, settings.max_length)
                said = partial(progress, f"baseline, increment {number}")
                plan = plan_phase(phase, kinds, peft_model, autocast, settings, said)
                run_phase(peft_model, tokenizer, plan, settings, None, out / f"work{number}", autocast, progress)
                with staged_folder(folder) as staged:
                    save_adapter(peft_model, staged, base_folder.name)
            folders.append(folder)
    return folders
