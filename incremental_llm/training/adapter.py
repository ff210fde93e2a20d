"""The fresh adapter of an increment: made, computed in the run's precision, written as a plain PEFT folder."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import set_seed

from incremental_llm.artifacts import write_json
from incremental_llm.errors import ConfigError, TrainingError
from incremental_llm.training.settings import TrainingSettings


def new_adapter(model: Any, settings: TrainingSettings, below: int = 0) -> Any:
    """`model` with a fresh adapter, which alone trains; its initial A is random, B is 0.

    Equal seeds and numbers of adapters `below` give equal starts, on every process. Each night starts elsewhere: from
    the same A it would see the very inputs that the nights before wrote to.
    """
    set_seed((settings.seed * 1000 + below) % 2**32)  # numpy takes no larger one
    adapted = get_peft_model(model, lora_config(model, settings))
    adapted.create_or_update_model_card = _no_card
    return adapted


def _no_card(_folder: str) -> None:
    """PEFT compiles a template for a card at every save; checkpoints are internal, and the handoff writes its own."""


def lora_config(model: Any, settings: TrainingSettings) -> LoraConfig:
    lora = settings.lora
    _check_targets(model, lora.targets)
    targets: str | list[str] = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    layers = None
    if lora.first_layer:
        depth = model.config.get_text_config().num_hidden_layers
        if lora.first_layer >= depth:
            raise TrainingError(f"lora.first_layer is {lora.first_layer}, but the base has only {depth} layers.")
        layers = list(range(lora.first_layer, depth))
        if targets == "all-linear":  # PEFT takes a list of layers with a list of module names only
            head = model.get_output_embeddings()
            linear = {
                n.rsplit(".", 1)[-1]
                for n, m in model.named_modules()
                if isinstance(m, torch.nn.Linear) and m is not head
            }
            targets = sorted(linear)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


def _check_targets(model: Any, targets: str | Sequence[str]) -> None:
    """Every name must be that of a linear layer: PEFT is content with one that matches and leaves the others out."""
    if targets == "all-linear":
        return
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in [targets] if isinstance(targets, str) else targets:
        if any(name == target or name.endswith("." + target) for name in linear):
            continue
        close = difflib.get_close_matches(target, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"training.lora.targets: expected linear layers of the base ({', '.join(known)}), or all-linear; found "
            f"{target!r}.{hint}"
        )


def autocast_of(model: Any, settings: TrainingSettings) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    device = next(model.parameters()).device.type
    enabled = settings.precision == "bf16"
    return lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=enabled)


def adapter_in_autocast_dtype(model: Any, settings: TrainingSettings) -> contextlib.AbstractContextManager[Any]:
    """Keep PEFT from copying every activation to the adapter's fp32: autocast runs the product in bf16 anyway.

    Measured: 1.3x faster steps on a CPU, with the adapter itself still in fp32 for the optimizer.
    """
    if settings.precision == "bf16":
        context: contextlib.AbstractContextManager[Any] = disable_input_dtype_casting(model)
        return context
    return contextlib.nullcontext()


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """A plain PEFT folder that names its base instead of this machine's path to it; equal adapters give equal bytes."""
    model.save_pretrained(folder, safe_serialization=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_name}
    if isinstance(config["target_modules"], list):  # a set in PEFT: its order is another in every process
        config["target_modules"].sort()
    write_json(path, config)
