"""What training starts from, what holds it, and how it is published: shared by all that train an adapter on a stack.

ground = ground_of(base, stack, ...)        the previous policy in memory, and the anchor that remembers it
ground.begin_adapter(settings, progress)    the adapter to train: a fresh one, or the one that goes on
anchor_of · memory_of · penalties_of        the terms that keep it from forgetting
publish(model, folder, ...)                 a plain PEFT folder, complete when its manifest is there
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.adapters.load import DTYPES, load_stack
from incremental_llm.adapters.lora import read_adapter
from incremental_llm.adapters.sharding import sharding
from incremental_llm.artifacts import staged_folder, write_json
from incremental_llm.base_models import cache_folder
from incremental_llm.chat import Conversation
from incremental_llm.errors import TrainingError
from incremental_llm.training.adapter import autocast_of, new_adapter, save_adapter
from incremental_llm.training.batching import Row
from incremental_llm.training.folded import folded_model
from incremental_llm.training.growth import continued_adapter, split_stack
from incremental_llm.training.moments import Moments, write_moments
from incremental_llm.training.null_space import start_in_null_space
from incremental_llm.training.phase import Progress
from incremental_llm.training.regularizers import Penalty
from incremental_llm.training.regularizers.anchor import Anchor
from incremental_llm.training.regularizers.ewc import DiagonalEwc, FoldedEwc, is_folded, read_fisher
from incremental_llm.training.regularizers.memory import ReplayMemory, read_dark
from incremental_llm.training.regularizers.orthogonal import Orthogonality
from incremental_llm.training.regularizers.stored import Stored
from incremental_llm.training.scoring import attach_labelled_head
from incremental_llm.training.settings import TrainingSettings


@dataclass
class Ground:
    """The previous policy in memory: what tonight's adapter stands on and is compared with.

    `frozen` are the adapters below it and `going_on` the one that is trained on, if one is. `model` is the policy as a
    plain causal language model; `peft_model`, around it, is None until a fresh adapter is begun.
    """

    frozen: list[Path]
    going_on: Path | None
    model: Any
    autocast: Any
    anchor: Anchor | None
    peft_model: Any = None

    def begin_adapter(self, settings: TrainingSettings, progress: Progress) -> Any:
        """The model with the adapter that will be trained, as it starts: still the previous policy."""
        if self.peft_model is None:
            self.peft_model = new_adapter(self.model, settings, below=len(self.frozen))
            if settings.lora.null_space is not None and self.anchor is not None:
                progress("turning the adapter away from everyday inputs", 0, 1, None)
                start_in_null_space(self.peft_model, self.anchor.rows, settings.lora.null_space, self.autocast)
        return self.peft_model


def ground_of(
    base_folder: Path,
    adapter_folders: Sequence[Path],
    tokenizer: Any,
    anchors: Sequence[tuple[Conversation, str]] | None,
    settings: TrainingSettings,
    progress: Progress,
) -> Ground:
    """Load the previous policy and let the anchor remember its teacher; `anchors` None: there is no anchor yet.

    Raises:
        ConfigError: the adapter that goes on has another shape than the recipe says.
        TrainingError: an anchor without conversations.
    """
    frozen, going_on = split_stack(adapter_folders, settings)
    anchor = None if anchors is None else anchor_of(tokenizer, anchors, settings)
    teacher_is_base = settings.anchor.teacher == "base" and bool(adapter_folders)
    if anchor is not None and teacher_is_base:
        progress("remembering the base's everyday answers", 0, 1, None)
        remember_base(anchor, base_folder, settings)
    progress("loading the previous policy", 0, 1, None)
    model = load_policy(base_folder, frozen, settings)
    ground = Ground(frozen, going_on, model, autocast_of(model, settings), anchor)
    if going_on:
        ground.peft_model = continued_adapter(model, going_on, settings)  # inside of `model` from here on
    if anchor is not None and not teacher_is_base:
        progress("remembering the previous policy's everyday answers", 0, 1, None)
        anchor.remember_teacher(model, ground.autocast)
    return ground


def load_policy(base_folder: Path, adapter_folders: Sequence[Path], settings: TrainingSettings) -> Any:
    """The stack as it is trained on: frozen, in the run's dtype, with a head that scores labelled positions only."""
    spread = sharding()
    if spread and adapter_folders and settings.frozen == "fold":
        base_folder = folded_model(base_folder, adapter_folders, settings.dtype, cache_folder() / "folded")
        adapter_folders = ()
    model = load_stack(
        base_folder,
        adapter_folders,
        dtype=DTYPES[settings.dtype],
        quantization=settings.quantization,
        to_train=True,
        frozen=settings.frozen,
        spread=spread,
    )
    _without_dropout(model)
    attach_labelled_head(model)
    return model


def _without_dropout(model: Any) -> None:
    """Turn the base's own dropout off: a policy that forgets at random is no reference. LoRA's is the recipe's."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def remember_base(anchor: Anchor, base_folder: Path, settings: TrainingSettings) -> None:
    base = load_policy(base_folder, (), settings)
    anchor.remember_teacher(base, autocast_of(base, settings))
    del base
    gc.collect()  # its head's scorer is a cycle, which would keep a second model in memory for a while


def anchor_of(tokenizer: Any, anchors: Sequence[tuple[Conversation, str]], settings: TrainingSettings) -> Anchor | None:
    if settings.anchor.weight == 0:
        return None
    if not anchors:
        raise TrainingError(
            "anchor.weight is above 0 but there are no anchor conversations: set it to 0, or give prompts."
        )
    rows = [Row(tuple(prompt_ids(tokenizer, c)), tuple(completion_ids(tokenizer, c, answer))) for c, answer in anchors]
    told = settings.anchor
    return Anchor(rows, weight=told.weight, rows_per_step=told.rows_per_step, seed=settings.seed, top_k=told.top_k)


def memory_of(adapter_folders: Sequence[Path], settings: TrainingSettings) -> tuple[ReplayMemory, list[str]]:
    """What replayed rows are held to; the dark logits are those beside the newest adapter."""
    dark, notes = {}, []
    if settings.dark.weight and adapter_folders:
        dark = read_dark(adapter_folders[-1])
        if not dark:
            notes.append("dark: the adapter before stored no logits, so there was nothing to hold replayed answers to")
    told = settings.replay_kl
    return (
        ReplayMemory(kl_weight=told.weight, top_k=told.top_k, dark_weight=settings.dark.weight, dark=dark),
        notes,
    )


def penalties_of(
    ground: Ground, adapter_folders: Sequence[Path], settings: TrainingSettings
) -> tuple[tuple[Penalty, ...], list[str]]:
    """The terms on the adapter's factors, and in words why one of them has nothing to hold."""
    peft_model, frozen_folders, going_on = ground.peft_model, ground.frozen, ground.going_on
    penalties: list[Penalty] = []
    notes: list[str] = []
    if settings.ewc.weight and adapter_folders:
        fisher = read_fisher(adapter_folders[-1])
        if not fisher or is_folded(fisher) != (going_on is None):
            found = "none" if not fisher else "that of another growth"
            notes.append(f"ewc: expected the Fisher information of the adapter before, found {found}: no penalty")
        else:
            ewc = (DiagonalEwc if going_on else FoldedEwc)(peft_model, fisher, settings.ewc.weight)
            if ewc.layers:
                penalties.append(ewc)
            else:
                notes.append("ewc: the Fisher information of the adapter before is of other layers: no penalty")
    if settings.orthogonal.weight and frozen_folders:
        orthogonality = Orthogonality(
            peft_model, [read_adapter(folder) for folder in frozen_folders], settings.orthogonal.weight
        )
        if settings.orthogonal.start and going_on is None:
            orthogonality.start_outside()
        if orthogonality.layers:
            penalties.append(orthogonality)
        if orthogonality.full:
            notes.append(f"orthogonal: earlier adapters read all inputs of {orthogonality.full} layers: left out there")
    elif settings.orthogonal.weight and going_on:
        notes.append("orthogonal: one adapter goes on and no other lies below it: no penalty")
    return tuple(penalties), notes


def publish(
    model: Any,
    folder: Path,
    base_name: str,
    name: str,
    record: dict[str, Any],
    moments: Mapping[str, Moments],
    stored: Stored | None = None,
) -> None:
    """Write the adapter and what goes with it as one complete folder, on the first process; the others wait for it."""
    if PartialState().is_main_process:
        with staged_folder(folder) as staged:
            save_adapter(model, staged, base_name)
            write_json(staged / name, record)
            for objective, kept in moments.items():
                if kept:
                    write_moments(staged, objective, kept)
            if stored:
                stored.write(staged)
    PartialState().wait_for_everyone()
