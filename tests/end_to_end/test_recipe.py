"""The nightly recipe on two processes, which hold the base each or share it: one registry, one commit a night."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from incremental_llm.config import RunConfig
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

ROOT = Path(__file__).parents[2]


def adapter_of(workspace: Workspace, version: int | None) -> dict[str, torch.Tensor]:
    """The newest adapter's factors; DPO and SFT have trained it."""
    (*_, newest) = workspace.registry.get(version or 0).stack.adapters
    return dict(load_file(workspace.registry.object_path(newest) / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate_config.yaml",
        pytest.param("recipes/accelerate_fsdp2.yaml", marks=pytest.mark.slow),
    ],
)
def test_two_processes_promote_the_version_of_one(
    launcher: str, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    config = tiny_config(seed=3)
    log = write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD))
    with Workspace.create(config.model_copy(update={"workspace": tmp_path / "alone"})) as workspace:
        workspace.import_feedback(log)
        alone = adapter_of(workspace, workspace.run().version)
    with Workspace.create(config) as workspace:
        workspace.import_feedback(log)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / launcher),
    ]
    command += ["--num_processes", "2", str(ROOT / "recipes" / "nightly.py"), "--config", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("promoted: production is now version 1") == 1
    with Workspace.open(config) as workspace:
        head = workspace.registry.head()
        assert (head.version, len(head.stack.adapters)) == (1, 1)
        assert workspace.registry.get_json(str(head.recipe))["training"]["seed"] == 3
        assert not workspace.registry.verify()
        assert workspace.registry.attempts() == ()
        together = adapter_of(workspace, 1)
    gap = sum((together[name] - alone[name]).square().sum().item() for name in alone)
    assert gap <= 1e-8 * sum(tensor.square().sum().item() for tensor in alone.values())  # 1e-4 of the factors
