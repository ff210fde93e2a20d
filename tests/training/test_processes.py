"""One process and two make the same adapter, also when they are told to end; and when one fails, all of them end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from incremental_llm.artifacts import verify_folder

from .conftest import launch, launch_command, launch_environment, relative_difference, updates, weights_of

pytestmark = pytest.mark.slow

# Two nights of each objective, 8 rows a step, whatever the number of processes; on the second night every term is on.
TRAIN = """
import gc, sys
from pathlib import Path
import trl  # what every phase would search for garbage
from incremental_llm.training.distributed import end_process, run_together
from tests.training.conftest import UNSETTLED, everyday, examples_of, settings_of

gc.freeze()
ALL = {
    "anchor": {"weight": 0.5, "rows_per_step": 3},
    "replay_kl": {"weight": 0.5},
    "dark": {"weight": 0.1},
    "ewc": {"weight": 1.0, "samples": 4},
    "orthogonal": {"weight": 0.5},
}

def lead(train):
    for objective, kind in {"sft": "sft", "dpo": "pair", "kto": "unpaired"}.items():
        phase = UNSETTLED[objective] | {"epochs": 16, "batch_size": 8, "learning_rate": 1e-3}
        common = {
            "base_folder": Path(sys.argv[1]),
            "anchors": everyday(),
            "settings": settings_of(objective, phases=[phase], save_steps=15, **ALL),
        }
        examples, out = examples_of(kind), Path(sys.argv[2]) / objective

        def look(what, done, total, loss):
            if what.startswith("training") and done == 16:  # a finished phase keeps no checkpoint
                names = sorted(path.name for path in (out / f"second/phase0-{objective}/checkpoint-15").iterdir())
                out.with_suffix(".names").write_text(" ".join(names))

        first = train(adapter_folders=[], examples=examples[:6], out=out / "first", **common)
        second = train(
            adapter_folders=[first.adapter], examples=examples, replayed=[e.id for e in examples[:6]],
            out=out / "second", progress=look, **common,
        )
        assert (first.phases[0].steps, second.phases[0].steps) == (12, 20)
        assert set(second.phases[0].terms) == {"anchor_kl", *list(ALL)[1:]}, second
        assert all(max(map(abs, values)) > 0 for values in second.phases[0].terms.values()), second
    return 0

end_process(run_together(lead))
"""

# One objective, slowly; after the step in argv[3] the first process tells itself to end, or waits to be told.
SLOW = """
import os, signal, sys, time
from pathlib import Path
from incremental_llm.training.distributed import end_process, run_together
from tests.training.conftest import PHASES, everyday, examples_of, settings_of

last, alone = int(sys.argv[3]), sys.argv[4] == "alone"

def look(what, done, total, loss):
    if what.startswith("training") and done == last:
        if alone:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            Path(sys.argv[2] + ".now").touch()
            time.sleep(1)

def lead(train):
    settings = settings_of("sft", phases=[PHASES["sft"] | {"epochs": 16, "batch_size": 8}])
    train(
        base_folder=Path(sys.argv[1]), adapter_folders=[], examples=examples_of("sft"), anchors=everyday(),
        settings=settings, out=Path(sys.argv[2]), progress=look,
    )
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


def written(folder: Path, text: str) -> Path:
    script = folder / "script.py"
    script.write_text(text, encoding="utf-8")
    return script


def test_two_processes_make_the_adapter_of_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    script = written(tmp_path, TRAIN)
    for processes in (1, 2):
        done = launch(script, str(tiny_model_dir), str(tmp_path / f"on{processes}"), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    for objective in ("sft", "dpo", "kto"):
        for night in ("first", "second"):
            one, two = (weights_of(tmp_path / f"on{n}" / objective / night / "adapter") for n in (1, 2))
            change = relative_difference(updates(one), updates(two))
            factors = relative_difference(one, two)
            print(f"{objective}, {night}: relative difference of updates {change:.1e}, of factors {factors:.1e}")
            assert change <= 1e-4, (objective, night)
            assert factors <= 1e-4, (objective, night)
        names = (tmp_path / "on2" / f"{objective}.names").read_text(encoding="utf-8").split()
        assert {"manifest.json", "rng_state_0.pth", "rng_state_1.pth"} <= set(names)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Callable[..., list[str]]:
    script = written(tmp_path_factory.mktemp("two"), SLOW)

    def command(out: Path, last: int, who: str, config: str = "accelerate_config.yaml") -> list[str]:
        return launch_command(script, str(tiny_model_dir), str(out), str(last), who, processes=2, config=config)

    return command


@pytest.fixture(scope="module")
def whole(two: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(two(out, 0, "nobody"), env=launch_environment(), check=True, capture_output=True, timeout=300)
    return weights_of(out / "adapter")


@pytest.mark.parametrize(
    ("who", "config"),
    [("alone", "accelerate_config.yaml"), ("all", "recipes/accelerate_fsdp2.yaml")],
)
def test_processes_that_are_told_to_end_stop_together_and_go_on_together(
    who: str, config: str, two: Callable[..., list[str]], whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out, environment = tmp_path / "cut", launch_environment()
    job = subprocess.Popen(
        two(out, 7, who, config), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while who == "all" and job.poll() is None:
        if (tmp_path / "cut.now").exists():
            job.terminate()  # the launcher passes it on to every process
            break
        time.sleep(0.05)
    _, said = job.communicate(timeout=300)
    assert job.returncode != 0
    (checkpoint,) = (out / "phase0-sft").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step in (7, 8, 9)
    assert said.count(f"sft: told to end, stopped after step {step} of 20 with a checkpoint.") == 2, said[-3000:]
    verify_folder(checkpoint)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    again = subprocess.run(two(out, 0, "nobody", config), env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    found = weights_of(out / "adapter")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


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
