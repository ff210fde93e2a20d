"""One process and two make the same adapter; and when one process fails, all of them end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

# 20 steps of each objective with 8 rows a step, whatever the number of processes. KTO's KL pairs come with the rows.
TRAIN = """
import sys
from pathlib import Path
from incremental_llm.training.distributed import end_process, run_together
from tests.training.conftest import PHASES, everyday, examples_of, settings_of

def lead(train):
    for objective, kind in {"sft": "sft", "dpo": "pair", "kto": "unpaired"}.items():
        phase = PHASES[objective] | {"epochs": 16, "batch_size": 8, "learning_rate": 1e-3}
        settings = settings_of(objective, phases=[phase], save_steps=15)
        out = Path(sys.argv[2]) / objective

        def look(what, done, total, loss):
            if what.startswith("training") and done == 16:  # a finished phase keeps no checkpoint
                names = sorted(path.name for path in (out / f"phase0-{objective}" / "checkpoint-15").iterdir())
                out.with_suffix(".names").write_text(" ".join(names))

        result = train(
            base_folder=Path(sys.argv[1]), adapter_folders=[], examples=examples_of(kind), anchors=everyday(),
            settings=settings, out=out, progress=look,
        )
        assert result.phases[0].steps == 20, result
    return 0

end_process(run_together(lead))
"""

# The first process's work, and what stands in for training on each process.
FAIL = """
import os, sys, time
from types import ModuleType
from accelerate import PartialState
from incremental_llm.errors import InputError, NothingToTrainError, TrainingError
from incremental_llm.training.distributed import end_process, run_together

case = sys.argv[1]

def train_increment(**arguments):
    first = PartialState().is_main_process
    if case == "nothing":
        raise NothingToTrainError("nothing to train")
    if case == "first" and first or case == "other" and not first:
        raise TrainingError("the loss is nan")
    PartialState().wait_for_everyone()
    time.sleep(60)

module = ModuleType("incremental_llm.training.increment")
module.train_increment = train_increment
sys.modules[module.__name__] = module

def lead(train):
    if case == "before":
        raise InputError("no such workspace")
    try:
        train(number=1)
    except NothingToTrainError:
        return 10
    return 0

code = run_together(lead)
os.write(1, f"ended with {code}\\n".encode())  # one write: unbuffered prints of two processes mix
end_process(code)
"""


def launch(script: Path, *arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch` with the project's own config."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "accelerate_config.yaml"),
    ]
    command += ["--num_processes", str(processes), str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_make_the_adapter_of_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    for processes in (1, 2):
        done = launch(script, str(tiny_model_dir), str(tmp_path / f"on{processes}"), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    for objective in ("sft", "dpo", "kto"):
        one, two = (
            load_file(tmp_path / f"on{n}" / objective / "adapter" / "adapter_model.safetensors") for n in (1, 2)
        )
        change = relative_difference(updates(one), updates(two))
        factors = relative_difference(one, two)
        print(f"{objective}: relative difference of the updates {change:.1e}, of the factors {factors:.1e}")
        assert change <= 1e-4, objective
        assert factors <= 1e-4, objective
        names = (tmp_path / "on2" / f"{objective}.names").read_text(encoding="utf-8").split()
        assert {"manifest.json", "rng_state_0.pth", "rng_state_1.pth"} <= set(names)


def updates(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """B A of every module."""
    pairs = {name: name.replace("lora_A", "lora_B") for name in adapter if "lora_A" in name}
    return {a: adapter[b] @ adapter[a] for a, b in pairs.items()}


def relative_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """||one - two|| / ||one|| over all tensors together."""
    gap = sum((one[name] - two[name]).square().sum().item() for name in one)
    return float((gap / sum(tensor.square().sum().item() for tensor in one.values())) ** 0.5)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("before", "error: process 0: no such workspace"),
        ("first", "error: process 0: the loss is nan"),
        ("other", "error: process 1: the loss is nan"),
    ],
)
def test_a_failure_of_one_process_ends_all(case: str, said: str, tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(FAIL, encoding="utf-8")
    started = time.monotonic()
    done = launch(script, case, processes=2)
    assert done.returncode != 0
    assert said in done.stderr
    assert time.monotonic() - started < 50  # nobody waited for the one that is gone


def test_the_first_process_ends_with_its_own_code_and_the_others_with_0(tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(FAIL, encoding="utf-8")
    done = launch(script, "nothing", processes=2)
    assert done.returncode != 0  # the launcher knows only success and failure
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("ended")) == [
        "ended with 0",
        "ended with 10",
    ]
    assert "exitcode  : 10" in done.stderr  # its table names the first process's own
