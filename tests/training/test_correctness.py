"""What must hold for every objective, at every depth of the stack, in every precision; and when a run is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from incremental_llm.artifacts import file_digest, verify_folder
from incremental_llm.errors import IntegrityError, TrainingError, TrainingInterrupted
from incremental_llm.training import increment as module
from incremental_llm.training import objectives, phase, scoring
from incremental_llm.training.regularizers import teachers

from .conftest import PHASES, everyday, examples_of, relative_difference, settings_of, weights_of

Increment = Callable[..., Any]
ROOT = Path(__file__).parents[2]
KINDS = {"sft": "sft", "dpo": "pair", "kto": "unpaired"}
START = {"dpo": 0.693147, "kto": 0.5}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "4-bit": {"precision": "fp32", "quantization": "nf4"},
}


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: Any) -> Path:
    """A random base whose layers have whole blocks of 64 weights a row, which is what 4-bit kernels want."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    config = AutoConfig.from_pretrained(tiny_model_dir, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, wide_base: Path) -> list[Path]:
    """Three adapters, each trained on the ones before it."""
    from incremental_llm.training.increment import train_increment

    made: list[Path] = []
    for number in range(3):
        told = settings_of("sft", anchor={"weight": 0}, seed=number, lora={"rank": 2 + number, "alpha": 4})
        out = tmp_path_factory.mktemp(f"below{number}")
        examples = examples_of("sft")
        result = train_increment(
            base_folder=wide_base, adapter_folders=made, examples=examples, anchors=[], settings=told, out=out
        )
        made.append(result.adapter)
    return made


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_only_the_new_adapter_moves_and_the_reference_is_the_previous_policy(
    objective: str,
    depth: int,
    precision: str,
    increment: Increment,
    wide_base: Path,
    stack: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_phase, moved = module.run_phase, []

    def watched(context: Any, *rest: Any, **told: Any) -> Any:
        before = {name: p.detach().clone() for name, p in context.model.named_parameters()}
        done = run_phase(context, *rest, **told)
        after = dict(context.model.named_parameters())
        moved.extend(name for name in before if not torch.equal(before[name], after[name]))
        return done

    monkeypatch.setattr(module, "run_phase", watched)
    frozen = [file_digest(wide_base / "model.safetensors"), *(verify_folder(folder) for folder in stack)]
    plain = tuple(e.model_copy(update={"weight": 1.0}) for e in examples_of(KINDS[objective]))
    result = increment(
        base_folder=wide_base,
        adapter_folders=stack[:depth],
        examples=plain,
        anchors=[],
        settings=settings_of(objective, anchor={"weight": 0}, **PRECISIONS[precision]),
    )
    assert frozen == [file_digest(wide_base / "model.safetensors"), *(verify_folder(folder) for folder in stack)]
    assert moved and all(".lora_" in name and ".default." in name for name in moved)
    if objective in START:
        assert result.phases[0].losses[0] == pytest.approx(START[objective], abs=2e-2 if precision == "bf16" else 1e-4)
    trained = load_file(result.adapter / "adapter_model.safetensors").values()
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in trained)


ALL_TERMS: dict[str, Any] = {
    "anchor": {"weight": 0.5, "rows_per_step": 2},
    "replay_kl": {"weight": 0.5},
    "dark": {"weight": 0.1},
    "ewc": {"weight": 1.0},
    "orthogonal": {"weight": 0.5},
}


@pytest.fixture(scope="module")
def told_stack(tmp_path_factory: pytest.TempPathFactory, wide_base: Path) -> list[Path]:
    """Two adapters that leave what every term needs."""
    from incremental_llm.training.increment import train_increment

    made: list[Path] = []
    for number in range(2):
        told = settings_of("sft", seed=number, **ALL_TERMS)
        common: dict[str, Any] = {"examples": examples_of("sft", "pair", "unpaired"), "anchors": everyday()}
        out = tmp_path_factory.mktemp(f"told{number}")
        made.append(
            train_increment(base_folder=wide_base, adapter_folders=made, settings=told, out=out, **common).adapter
        )
    return made


@pytest.mark.parametrize("beside", [{"frozen": "concat"}, {"frozen": "live"}, {"quantization": "nf4"}], ids=str)
def test_all_terms_are_the_same_beside_the_base_as_folded_into_it(
    beside: dict[str, Any], increment: Increment, wide_base: Path, told_stack: list[Path], tmp_path: Path
) -> None:
    """Exact where only the place of the frozen stack differs; over a 4-bit base the terms of the start are."""
    examples = examples_of("pair", "unpaired", "sft")
    replayed = [e.id for e in examples_of("sft")[:5]]
    common: dict[str, Any] = {"base_folder": wide_base, "adapter_folders": told_stack, "examples": examples}
    found, folded = (
        increment(
            **common, replayed=replayed, out=tmp_path / name, settings=settings_of("dpo", "sft", **ALL_TERMS, **more)
        )
        for name, more in (("beside", beside), ("folded", {}))
    )
    for phase_found, phase_folded in zip(found.phases, folded.phases, strict=True):
        assert (
            phase_found.terms.keys()
            == phase_folded.terms.keys()
            == {"anchor_kl", "replay_kl", "dark", "ewc", "orthogonal"}
        )
    assert found.phases[0].anchor_kl[0] == pytest.approx(0, abs=1e-4)
    if "frozen" in beside:
        assert relative_difference(weights_of(folded.adapter), weights_of(found.adapter)) < 1e-3
    else:
        assert all(torch.isfinite(tensor).all() for tensor in weights_of(found.adapter).values())


def test_the_optimizer_holds_the_new_adapter_and_nothing_else(
    increment: Increment, stack: list[Path], wide_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[set[int], set[int]]] = []
    moments_of = phase.moments_of

    def watched(optimizer: Any, model: Any) -> Any:
        own = {id(p) for n, p in model.named_parameters() if ".lora_" in n and ".default." in n}
        held.append(({id(p) for group in optimizer.param_groups for p in group["params"]}, own))
        return moments_of(optimizer, model)

    monkeypatch.setattr(phase, "moments_of", watched)
    increment(base_folder=wide_base, adapter_folders=stack)
    assert len(held) == 3
    assert all(in_optimizer == own for in_optimizer, own in held)


# Memory runs out


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
@pytest.mark.parametrize("at", [1, 4])
def test_out_of_memory_halves_the_micro_batch_and_keeps_step_and_loss(
    objective: str, at: int, increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings_of(objective, save_steps=2, phases=[PHASES[objective] | {"epochs": 2, "batch_size": 4}])
    examples = examples_of(KINDS[objective])
    whole = increment(examples=examples, settings=told, out=tmp_path / "whole")
    trainer = objectives.TRAINERS[objective]
    objective_loss, sizes = trainer.objective_loss, []

    def bounded(self: Any, model: Any, batch: Any, logps_N: torch.Tensor) -> torch.Tensor:
        size = len(batch["held"])
        sizes.append(size)
        if size > 2 and len(sizes) >= at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        loss: torch.Tensor = objective_loss(self, model, batch, logps_N)
        return loss

    monkeypatch.setattr(trainer, "objective_loss", bounded)
    cut = increment(examples=examples, settings=told, out=tmp_path / "cut")
    assert sizes[:at] == [4] * at and set(sizes[at:]) == {2}
    expected, found = (load_file(r.adapter / "adapter_model.safetensors") for r in (whole, cut))
    assert all(torch.allclose(expected[name], found[name], atol=2e-5) for name in expected)
    assert cut.phases[0].losses == pytest.approx(whole.phases[0].losses, abs=1e-4)


@pytest.mark.parametrize("told", [{"replay_kl": {"weight": 1.0}}, {}])
def test_out_of_memory_in_references_and_teachers_makes_smaller_passes(
    told: dict[str, Any], increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, examples = settings_of("dpo", **told), examples_of("pair")
    night = {"examples": examples, "replayed": [e.id for e in examples], "settings": settings}
    whole = increment(**night, out=tmp_path / "whole")
    labelled, rows = scoring.labelled_hidden, []

    def bounded(body: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> torch.Tensor:
        rows.append(ids_BT.shape[0])
        if not torch.is_grad_enabled() and ids_BT.shape[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return labelled(body, ids_BT, labelled_BT)

    monkeypatch.setattr(scoring, "labelled_hidden", bounded)
    monkeypatch.setattr(teachers, "labelled_hidden", bounded)
    cut = increment(**night, out=tmp_path / "cut")
    assert max(rows) > 4 and rows.count(max(rows)) < len(rows)
    assert cut.phases[0].losses == pytest.approx(whole.phases[0].losses, abs=1e-4)


def test_a_single_example_that_does_not_fit_is_an_error_with_advice(
    increment: Increment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(objectives.WeightedSFT, "objective_loss", full)
    with pytest.raises(TrainingError, match=r"out of memory with 1 examples .* Lower training\.max_length"):
        increment("sft")


# A run is told to end, or killed

NIGHT = """
import sys
from pathlib import Path
from incremental_llm.errors import IncrementalError
from incremental_llm.training.increment import train_increment
from tests.training.conftest import PHASES, everyday, examples_of, settings_of

phase = PHASES["sft"] | {"epochs": 8}
settings = settings_of("sft", phases=[phase], save_steps=int(sys.argv[3]))

def look(what, done, total, loss):
    if what == "training sft":
        print(done, flush=True)
        sys.stdin.readline()

try:
    train_increment(
        base_folder=Path(sys.argv[1]), adapter_folders=[], examples=examples_of("sft"), anchors=everyday(),
        settings=settings, out=Path(sys.argv[2]), progress=look,
    )
except IncrementalError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


class Night:
    """A training process that waits after every step."""

    def __init__(self, tmp_path: Path, base: Path, out: Path, save_steps: int) -> None:
        script = tmp_path / "night.py"
        script.write_text(NIGHT, encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(base), str(out), str(save_steps)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def until(self, step: int) -> None:
        assert self.process.stdout and self.process.stdin
        while int(self.process.stdout.readline()) < step:
            self.go()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rest(self) -> tuple[list[str], int]:
        """Let it run to its end: (what it printed, exit code)."""
        assert self.process.stdin
        self.process.stdin.write("\n" * 100)
        said, _ = self.process.communicate(timeout=120)
        return said.split("\n")[:-1], self.process.returncode


@pytest.fixture
def whole(increment: Increment, tmp_path: Path) -> dict[str, torch.Tensor]:
    told = settings_of("sft", phases=[PHASES["sft"] | {"epochs": 8}], save_steps=50)
    result = increment(examples=examples_of("sft"), settings=told, out=tmp_path / "whole")
    return load_file(result.adapter / "adapter_model.safetensors")


def test_sigterm_writes_a_checkpoint_and_ends_with_its_own_code(
    tmp_path: Path, tiny_model_dir: Path, whole: dict[str, torch.Tensor]
) -> None:
    out = tmp_path / "cut"
    night = Night(tmp_path, tiny_model_dir, out, save_steps=50)
    night.until(7)
    night.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    (*steps, said), code = night.rest()
    assert code == TrainingInterrupted.exit_code == 40
    stopped = 7 if not steps else int(steps[-1])
    assert f"told to end, stopped after step {stopped} of 20 with a checkpoint" in said
    assert [path.name for path in out.glob("phase0-sft/checkpoint-*")] == [f"checkpoint-{stopped}"]
    steps, code = Night(tmp_path, tiny_model_dir, out, save_steps=50).rest()
    assert (code, steps) == (0, [str(n) for n in range(stopped + 1, 21)])
    found = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


@pytest.mark.slow
def test_sigkill_loses_at_most_the_steps_since_the_last_checkpoint(
    tmp_path: Path, tiny_model_dir: Path, whole: dict[str, torch.Tensor]
) -> None:
    out = tmp_path / "cut"
    night = Night(tmp_path, tiny_model_dir, out, save_steps=3)
    night.until(11)
    night.process.kill()
    night.process.communicate()  # closes its pipes, which would be found open at some later test
    steps, code = Night(tmp_path, tiny_model_dir, out, save_steps=3).rest()
    assert (code, steps) == (0, [str(n) for n in range(10, 21)])
    found = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_resume_on_another_base_or_template_is_refused(
    increment: Increment, tmp_path: Path, wide_base: Path, tiny_model_dir: Path, tiny_tokenizer: Any
) -> None:
    import copy
    import shutil

    increment("sft", out=tmp_path / "run")
    with pytest.raises(IntegrityError, match="a run with another base"):
        increment("sft", out=tmp_path / "run", base_folder=wide_base)
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template = tiny_tokenizer.chat_template.replace("system", "policy") + " "
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(IntegrityError, match="another tokenizer and template"):
        increment("sft", out=tmp_path / "run", base_folder=tmp_path / "base")


def test_a_resume_on_another_number_of_processes_is_refused(increment: Increment, tmp_path: Path) -> None:
    increment("sft", out=tmp_path / "run")
    marker = tmp_path / "run" / "identity.json"
    told = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(told | {"number of processes": 2}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="a run with another number of processes"):
        increment("sft", out=tmp_path / "run")
