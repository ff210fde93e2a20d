"""A tiny world: a random model, a suite, and nights of feedback that it can learn from in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from incremental_llm.config import RunConfig, parse_config

ANIMALS = ["fox", "owl", "hen", "eel", "cod", "bee", "ant", "elk", "yak", "emu", "ape", "cow", "dog", "cat"]
GOOD, BAD = "the shop answers: yes", "the order ships: no"


@pytest.fixture(autouse=True)
def _one_thread(collect_less: None) -> Iterator[None]:
    """Tiny matrices are slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def night(number: int, chosen: str, rejected: str, *, users: int = 3) -> list[dict[str, Any]]:
    """A night of feedback in which every question is corrected from `rejected` to `chosen`."""
    events: list[dict[str, Any]] = []
    for index, animal in enumerate(ANIMALS):
        clock = f"2026-11-{number:02d}T12:{index:02d}"
        asked = {"role": "user", "content": f"{('Is', 'Was', 'Has', 'Will')[number - 1]} the {animal} here?"}
        served = {
            "type": "interaction",
            "id": f"n{number}-i{index}",
            "time": f"{clock}:00Z",
            "conversation": f"c{number}-{index}",
        }
        served |= {"user": f"u{index % users}", "messages": [asked], "reply": rejected, "model": "production"}
        fixed = {"type": "correction", "id": f"n{number}-k{index}", "time": f"{clock}:30Z", "interaction": served["id"]}
        events += [served, fixed | {"reviewer": f"r{index % 2}", "content": chosen}]
    return events


def write_log(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return path


@pytest.fixture
def tiny_suites(tmp_path: Path) -> Path:
    folder = tmp_path / "suites" / "tiny"
    folder.mkdir(parents=True)
    head = "name: tiny\nversion: 1\nscorer: contains\ndescription: d\nsource: s\nlicence: Apache-2.0\n"
    head += "max_new_tokens: 4\nmin_items: 10\n"
    (folder / "suite.yaml").write_text(head, encoding="utf-8")
    items = [
        {
            "id": f"t{i}",
            "messages": [{"role": "user", "content": f"Count to {i}"}],
            "accept": [str(i)],
            "distractors": [],
        }
        for i in range(12)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items), encoding="utf-8")
    return folder.parent


def copy_suite(config: RunConfig, name: str) -> None:
    """The same suite once more, under another name."""
    shutil.copytree(config.suites.folder / "tiny", config.suites.folder / name)
    head = config.suites.folder / name / "suite.yaml"
    head.write_text(head.read_text(encoding="utf-8").replace("name: tiny", f"name: {name}"), encoding="utf-8")


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_model_dir: Path, tiny_suites: Path) -> Callable[..., RunConfig]:
    """A recipe for the tiny model that learns fourteen corrections in a second or two."""

    def build(**training: Any) -> RunConfig:
        phases = [
            {"objective": "dpo", "learning_rate": 1e-3, "epochs": 1},
            {"objective": "sft", "learning_rate": 1e-2, "epochs": 8},
        ]
        anchor = {"weight": 0.1, "rows_per_step": 2, "max_new_tokens": 4}
        tree = {
            "workspace": str(tmp_path / "illm"),
            "base": str(tiny_model_dir),
            "suites": {"folder": str(tiny_suites), "old": ["tiny"]},
            "replay": {"ratio": 0.05, "minimum": 2},  # so little that false nights are seen to lose what was true
            "training": {"precision": "fp32", "phases": phases, "anchor": anchor, "save_steps": 4, **training},
            "gate": {"min_items": 10, "margin": 0.3, "min_corrections": 6},
        }
        return parse_config(tree, source="the test")

    return build
