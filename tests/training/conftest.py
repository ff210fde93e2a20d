"""Examples of every kind, anchors and settings that train the tiny model in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from incremental_llm.chat import Message
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]

THINGS = ["fox", "owl", "hen", "eel", "cod", "bee", "ant", "elk", "yak", "emu"]

PHASES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", "learning_rate": 1e-3, "epochs": 1, "batch_size": 4},
    "kto": {"objective": "kto", "learning_rate": 1e-3, "epochs": 1, "batch_size": 4},
    "sft": {"objective": "sft", "learning_rate": 5e-3, "epochs": 2, "batch_size": 4},
}


UNSETTLED = PHASES | {"dpo": PHASES["dpo"] | {"settled_margin": 1e9, "replayed_kl": 0.0}}
"""The same, in which a replayed pair stays a pair and is not held to the previous policy."""


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def examples_of(*kinds: str) -> tuple[Example, ...]:
    """Ten examples of each kind named, of different lengths and weights."""
    made: list[Example] = []
    for number, thing in enumerate(THINGS):
        said: dict[str, Any] = {"sources": (f"e{number}",), "users": ("u1",), "weight": 1.0 - 0.05 * number}
        prompt = ask(f"Where is the {thing}{' now' * (number % 3)}?")
        good, bad = f"It is in the shop{' again' * (number % 4)}.", f"Nobody knows {number}."
        if "sft" in kinds:
            made.append(SftExample(prompt=prompt, completion=good, **said))
        if "pair" in kinds:
            made.append(PairExample(prompt=prompt, chosen=good, rejected=bad, **said))
        if "unpaired" in kinds:
            liked = number % 2 == 0
            made.append(UnpairedExample(prompt=prompt, completion=good if liked else bad, desirable=liked, **said))
    return tuple(made)


def everyday() -> list[tuple[tuple[Message, ...], str]]:
    """Three anchor conversations with their answers."""
    return [(ask(f"What is {n} and {n}?"), f"It is {2 * n}, of course.") for n in (1, 20, 300)]


def settings_of(*objectives: str, **other: Any) -> TrainingSettings:
    """fp32 settings with these phases, in this order; keyword arguments replace other settings."""
    tree: dict[str, Any] = {
        "precision": "fp32",
        "lora": {"rank": 4, "alpha": 8},
        "anchor": {"weight": 0.5, "rows_per_step": 2},
        "phases": [PHASES[objective] for objective in objectives],
    }
    return TrainingSettings.model_validate(tree | other)


def launch_command(script: Path, *arguments: str, processes: int, config: str = "accelerate_config.yaml") -> list[str]:
    """How a script is started under `accelerate launch` with one of the project's own configs."""
    told = ["--config_file", str(ROOT / config), "--num_processes", str(processes)]
    return [sys.executable, "-m", "accelerate.commands.launch", *told, str(script), *arguments]


def launch_environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def launch(script: Path, *arguments: str, **told: Any) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch` to its end; keyword arguments as for `launch_command`."""
    command = launch_command(script, *arguments, **told)
    return subprocess.run(command, env=launch_environment(), capture_output=True, text=True, timeout=300)


def weights_of(adapter: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(adapter / "adapter_model.safetensors"))


def updates(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """B A of every module."""
    pairs = {name: name.replace("lora_A", "lora_B") for name in adapter if "lora_A" in name}
    return {a: adapter[b] @ adapter[a] for a, b in pairs.items()}


def relative_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """||one - two|| / ||one|| over all tensors together."""
    gap = sum((one[name] - two[name]).square().sum().item() for name in one)
    return float((gap / sum(tensor.square().sum().item() for tensor in one.values())) ** 0.5)


@pytest.fixture(autouse=True)
def _one_thread(collect_less: None) -> Any:
    """Tiny matrices are slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def increment(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Any]:
    """Train one increment on the tiny model: all three phases on all kinds, unless told otherwise."""

    def train(*objectives: str, **changes: Any) -> Any:
        from incremental_llm.training.increment import train_increment

        arguments: dict[str, Any] = {
            "base_folder": tiny_model_dir,
            "adapter_folders": [],
            "examples": examples_of("pair", "unpaired", "sft"),
            "anchors": everyday(),
            "settings": settings_of(*(objectives or ("dpo", "kto", "sft"))),
            "out": tmp_path / "run",
        }
        return train_increment(**(arguments | changes))

    return train
