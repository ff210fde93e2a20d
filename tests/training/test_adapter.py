"""Where a fresh adapter starts: decided by the seed and its place in the stack, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from incremental_llm.adapters.load import load_stack
from incremental_llm.training.adapter import new_adapter, save_adapter

from .conftest import settings_of


def start(folder: Path, seed: int, below: int) -> dict[str, torch.Tensor]:
    model = load_stack(folder, [], dtype=torch.float32, to_train=True)
    adapted = new_adapter(model, settings_of("sft", seed=seed), below)
    return {name: value.detach() for name, value in adapted.named_parameters() if "lora_A" in name}


def test_each_place_in_the_stack_and_each_seed_starts_elsewhere(tiny_model_dir: Path) -> None:
    first = start(tiny_model_dir, 0, 0)
    assert first
    again = start(tiny_model_dir, 0, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for seed, below in ((0, 1), (1, 0), (1, 1)):
        other = start(tiny_model_dir, seed, below)
        assert not any(torch.equal(first[name], other[name]) for name in first)


def test_equal_adapters_give_equal_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = new_adapter(load_stack(tiny_model_dir, [], dtype=torch.float32, to_train=True), settings_of("sft"), 0)
    config = adapted.peft_config["default"]
    names = sorted(config.target_modules)
    for folder, order in (("one", names), ("other", names[::-1])):  # as PEFT's set has them in two processes
        config.target_modules = order
        save_adapter(adapted, tmp_path / folder, "base")
    written = [{p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("one", "other")]
    assert len(names) > 1 and written[0] == written[1]
