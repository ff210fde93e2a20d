"""How the stack grows: a new adapter each increment, one that goes on, or several that become one.

stack         frozen: all earlier adapters       trained: a fresh one       the stack gets one more
continue      frozen: all but the last           trained: the last one      it takes the last one's place
consolidate   as stack, and when there are more than `consolidate_after`, their sum takes the place of all
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from incremental_llm.adapters.lora import WEIGHTS_FILE, LoraAdapter, read_adapter, write_adapter
from incremental_llm.adapters.merge import concatenate, reduce_rank
from incremental_llm.artifacts import staged_folder, verify_folder, write_json
from incremental_llm.errors import ConfigError
from incremental_llm.training.adapter import new_adapter
from incremental_llm.training.regularizers.factors import lora_layers
from incremental_llm.training.regularizers.stored import stored_beside
from incremental_llm.training.settings import TrainingSettings

RECORD = "training.json"


def split_stack(adapter_folders: Sequence[Path], settings: TrainingSettings) -> tuple[list[Path], Path | None]:
    """(frozen adapters, the one that goes on): none goes on but under `continue`."""
    if settings.growth == "continue" and adapter_folders:
        return list(adapter_folders[:-1]), adapter_folders[-1]
    return list(adapter_folders), None


def increments_behind(adapter_folders: Sequence[Path]) -> int:
    """How many increments made these adapters: one each, but for those that went on or stand for several."""
    return sum(_increments(folder) for folder in adapter_folders)


def _increments(folder: Path) -> int:
    record = folder / RECORD
    if not record.is_file():
        return 1
    return int(json.loads(record.read_text(encoding="utf-8")).get("increments", 1))


def continued_adapter(model: Any, folder: Path, settings: TrainingSettings) -> Any:
    """`model` with the adapter of `folder`, which goes on training, in evaluation mode.

    Raises:
        ConfigError: the recipe asks for another rank, scaling or other layers than the adapter has.
    """
    peft_model = new_adapter(model, settings)
    _check_same_shape(peft_model, read_adapter(folder), folder)
    set_peft_model_state_dict(peft_model, load_file(folder / WEIGHTS_FILE))
    peft_model.eval()
    return peft_model


def _check_same_shape(peft_model: Any, found: LoraAdapter, folder: Path) -> None:
    layers = lora_layers(peft_model)
    expected = {name: (layer.r["default"], round(float(layer.scaling["default"]), 6)) for name, layer in layers.items()}
    has = {name: (rank, round(found.scaling[name], 6)) for name, rank in found.ranks.items()}
    if expected != has:
        name = next(name for name in sorted({*expected, *has}) if expected.get(name) != has.get(name))
        raise ConfigError(
            f"training.growth is continue, and {folder.name[:16]} goes on with what it is: expected (rank, scaling) "
            f"{expected.get(name)} in {name} as in training.lora, found {has.get(name)}. Keep lora and its schedule as "
            "they were, or take growth: stack for this increment."
        )


@contextlib.contextmanager
def previous_policy(peft_model: Any, start: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Within, the model is the policy that tonight's adapter started from.

    Without the adapter where it is fresh (`start` is None), with its first values where it goes on.
    """
    if start is None:
        with peft_model.disable_adapter():
            yield
        return
    now = trained_values(peft_model)
    set_values(peft_model, start)
    try:
        yield
    finally:
        set_values(peft_model, now)


def trained_values(peft_model: Any) -> dict[str, torch.Tensor]:
    """A copy of every trained parameter, by name."""
    return {name: p.detach().clone() for name, p in peft_model.named_parameters() if p.requires_grad}


@torch.no_grad()
def set_values(peft_model: Any, values: dict[str, torch.Tensor]) -> None:
    """Give the parameters named the values that `trained_values` copied."""
    for name, parameter in peft_model.named_parameters():
        if name in values:
            parameter.copy_(values[name])


def consolidated(adapter_folders: Sequence[Path], out: Path, settings: TrainingSettings, base_name: str) -> str:
    """Write one adapter for all of `adapter_folders` (oldest first) to `out`, and say in words what it cost.

    It is their exact sum, or the best one of `consolidate_rank`; with the newest one's records beside it.
    """
    total = concatenate([read_adapter(folder) for folder in adapter_folders])
    rank, error = settings.consolidate_rank, 0.0
    if rank is not None:
        total, reduction = reduce_rank(total, rank)
        error = reduction.relative_error
    note = f"{len(adapter_folders)} adapters became one of rank {max(total.ranks.values())}, relative error {error:.2g}"
    write_consolidated(adapter_folders, total, out, base_name, note, replaces=len(adapter_folders) - 1)
    return note


def write_consolidated(
    adapter_folders: Sequence[Path], one: LoraAdapter, out: Path, base_name: str, note: str, *, replaces: int
) -> None:
    """Write `one`, made of the adapters of `adapter_folders`, to `out`, with the newest one's records beside it.

    `replaces` is how many adapters of production it takes the place of.
    """
    newest = adapter_folders[-1]
    told = newest / RECORD
    record = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    record |= {
        "increments": increments_behind(adapter_folders),
        "replaces": replaces,
        "notes": [*record.get("notes", ()), note],
    }
    with staged_folder(out) as staged:
        write_adapter(staged, one.modules, base_name, scaling=one.scaling)
        stored_beside(newest).write(staged)
        write_json(staged / RECORD, record)
    verify_folder(out)
