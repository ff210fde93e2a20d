"""A base that is spread over processes gives the adapter of one that is not, bit for bit; what cannot be is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DeepSpeedPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from incremental_llm.adapters import sharding as module
from incremental_llm.adapters.sharding import Sharding, own_part, settle, sharding
from incremental_llm.errors import ConfigError

from .conftest import ROOT, launch, relative_difference, settings_of, weights_of

pytestmark = pytest.mark.slow

# Two nights of each case. Shares of three anchor rows on two processes are never equal, nor are those of replayed rows.
TRAIN = """
import gc, json, os, sys
from pathlib import Path
import trl  # what every phase would search for garbage
from torch.distributed.tensor import DTensor
from incremental_llm.adapters.sharding import own_part
from incremental_llm.training import invariants
from incremental_llm.training.distributed import end_process, run_together
from tests.training.conftest import UNSETTLED, everyday, examples_of, settings_of

ON = {
    "anchor": {"weight": 0.5, "rows_per_step": 3},
    "replay_kl": {"weight": 0.5},
    "dark": {"weight": 0.1},
    "ewc": {"weight": 1.0, "samples": 4},
    "orthogonal": {"weight": 0.5},
}
gc.freeze()
rank, digest = os.environ["RANK"], invariants.frozen_digest

def frozen_digest(model):
    found = digest(model)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held, whole = sum(own_part(p).numel() for p in frozen), sum(p.numel() for p in frozen)
    Path(sys.argv[1] + f".held{rank}").write_text(f"{held} {whole} {any(isinstance(p, DTensor) for p in frozen)}")
    return found

invariants.frozen_digest = frozen_digest

def lead(train):
    for name, (base, told) in json.loads(sys.argv[2]).items():
        out = Path(sys.argv[1]) / name
        phases = [UNSETTLED[o] | {"epochs": 1, "learning_rate": 1e-3} for o in ("dpo", "kto", "sft")]
        settings = settings_of(**({"phases": phases} | ON | told))
        common = {"base_folder": Path(base), "anchors": everyday(), "settings": settings}
        examples = examples_of("pair", "unpaired", "sft")
        old = [e for e in examples if int(e.sources[0][1:]) < 6]
        first = train(adapter_folders=[], examples=old, out=out / "first", **common)
        second = train(
            adapter_folders=[first.adapter], examples=examples, replayed=[e.id for e in old], out=out / "second",
            **common,
        )
        assert [phase.steps for phase in second.phases] == [3, 3, 3], second
        assert all({"anchor_kl", "replay_kl", "dark", "ewc"} <= set(phase.terms) for phase in second.phases), second
    return 0

end_process(run_together(lead))
"""

CONFIGS = {"whole": "accelerate_config.yaml", "spread": "recipes/accelerate_fsdp2.yaml"}
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {},
    "base as teacher": {
        "frozen": "concat",
        "precision": "bf16",
        "anchor": {"weight": 0.5, "rows_per_step": 3, "teacher": "base", "top_k": 8},
        "lora": {"rank": 4, "alpha": 8, "null_space": 0.1},
    },
    "continue": {"growth": "continue"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: Any) -> dict[str, Path]:
    """By case: the tiny model, whose head is its embedding, but for one with a head of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    untied = tmp_path_factory.mktemp("untied")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(tiny_model_dir, tie_word_embeddings=False)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(untied)
    tiny_tokenizer.save_pretrained(untied)
    return dict.fromkeys(CASES, tiny_model_dir) | {"untied": untied}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path]) -> dict[str, Path]:
    """All cases on two processes that hold the whole base, and on two over which it is spread; two of them on one."""
    folder = tmp_path_factory.mktemp("spread")
    script = folder / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    runs = {name: (config, 2, list(CASES)) for name, config in CONFIGS.items()}
    runs["one"] = (CONFIGS["whole"], 1, ["tied", "untied"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INCREMENTAL_LLM_CACHE", str(folder / "cache"))
        for name, (config, processes, cases) in runs.items():
            told = json.dumps({case: (str(bases[case]), CASES[case]) for case in cases})
            done = launch(script, str(folder / name), told, processes=processes, config=config)
            assert done.returncode == 0, (name, done.stderr[-3000:])
    assert len(list((folder / "cache" / "folded").glob("*/model.safetensors"))) == 2  # of the nights that fold
    return {name: folder / name for name in runs}


@pytest.mark.parametrize("night", ["first", "second"])
@pytest.mark.parametrize("case", CASES)
def test_a_spread_base_gives_the_same_adapter_and_records(case: str, night: str, trained: dict[str, Path]) -> None:
    whole, spread = (trained[name] / case / night / "adapter" for name in CONFIGS)
    files = {path.name for path in whole.glob("*.safetensors")}
    assert {"adapter_model.safetensors", "fisher.safetensors", "dark_logits.safetensors"} <= files
    assert files == {path.name for path in spread.glob("*.safetensors")}
    for name in files:
        one, two = load_file(whole / name), load_file(spread / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


@pytest.mark.parametrize("night", ["first", "second"])
@pytest.mark.parametrize("case", ["tied", "untied"])
def test_it_is_the_adapter_of_one_process(case: str, night: str, trained: dict[str, Path]) -> None:
    one, spread = (weights_of(trained[name] / case / night / "adapter") for name in ("one", "spread"))
    gap = relative_difference(one, spread)
    print(f"{case}, {night} night: relative difference to one process {gap:.1e}")
    assert gap <= 1e-4


def test_each_process_holds_its_part_alone(trained: dict[str, Path]) -> None:
    for name, spread in (("whole", False), ("spread", True)):
        for rank in (0, 1):  # of the last case, whose embedding is tied to its head and whole on each
            held, whole, found = trained[name].with_name(f"{name}.held{rank}").read_text().split()
            embedding = 320 * 32
            expected = (int(whole) - embedding) / 2 + embedding if spread else int(whole)
            assert int(held) == pytest.approx(expected, rel=0.01)
            assert found == str(spread)


def test_a_4_bit_base_is_refused_before_anything_is_done(
    increment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from incremental_llm.training import increment as training

    monkeypatch.setattr(training, "sharding", Sharding)
    with pytest.raises(ConfigError, match="quantization: expected none with a model that is spread over"):
        increment(settings=settings_of("sft", quantization="nf4"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What accelerate's config may say


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sharding | None]]:
    """`sharding()` in an environment such as the launcher makes from a config."""

    def ask(**environment: str) -> Sharding | None:
        module._read.cache_clear()
        for name, value in ({"WORLD_SIZE": "2"} | environment).items():
            monkeypatch.setenv(name, value)
        return sharding()

    yield ask
    module._read.cache_clear()


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def test_settings_are_read_once_and_taken_from_accelerate(told: Callable[..., Any]) -> None:
    assert told(**FSDP2) == Sharding()
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert sharding() == Sharding()
    named = told(**FSDP2 | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "A,B", "FSDP_RESHARD_AFTER_FORWARD": "false"})
    assert named == Sharding(layers=("A", "B"), reshard_after_forward=False)


def test_without_a_word_or_with_one_process_nothing_is_spread(told: Callable[..., Any]) -> None:
    assert told() is None
    assert told(**FSDP2 | {"WORLD_SIZE": "1"}) is None


def test_what_would_be_ignored_is_refused_and_all_of_it_is_listed(told: Callable[..., Any]) -> None:
    wrong = {
        "FSDP_VERSION": "1",
        "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    with pytest.raises(ConfigError) as error:
        told(**FSDP2 | wrong)
    said = str(error.value)
    assert "fsdp_version: expected 2, found 1; fsdp_auto_wrap_policy: expected TRANSFORMER_BASED_WRAP" in said
    assert all(f"{key.lower()}: expected false, found true" in said for key in list(wrong)[2:])
    assert "recipes/accelerate_fsdp2.yaml works as it is" in said
    with pytest.raises(ConfigError):  # whoever asks again is told again
        sharding()


ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def test_deepspeed_is_refused_where_it_is_not_installed_and_below_stage_3(told: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="expected the package deepspeed, found none: install it, or use"):
        told(**ZERO3)
    with pytest.raises(ConfigError, match="zero_stage: expected 3, found 2"):
        told(**ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})


def test_a_refusal_ends_every_process_with_code_2(
    told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from incremental_llm.training.distributed import run_together

    with pytest.raises(ConfigError):
        told(**FSDP2 | {"FSDP_VERSION": "1"})
    monkeypatch.delenv("WORLD_SIZE")
    assert run_together(lambda train: pytest.fail("led")) == 2
    assert "error: accelerate's config: fsdp_version: expected 2, found 1" in capsys.readouterr().err


def test_layers_that_the_model_does_not_have_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ConfigError, match="expected layers of LlamaModel, found Unknown"):
        Sharding(layers=("Unknown",)).spread(tiny_model, torch.device("cpu"))


def test_a_whole_model_is_its_own_part(tiny_model: Any) -> None:
    settle(tiny_model)
    assert all(own_part(parameter) is parameter for parameter in tiny_model.parameters())


# DeepSpeed itself cannot be run here: what is handed to it can be looked at.


def test_zero3_is_an_engine_without_an_optimizer_that_starts_anew_at_each_pass(
    told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    calls, resets = [], []
    coordinator = SimpleNamespace(reset_step=lambda: resets.append(1))
    engine = SimpleNamespace(optimizer=SimpleNamespace(get_param_coordinator=lambda: coordinator))
    deepspeed = ModuleType("deepspeed")
    deepspeed.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    deepspeed.initialize = lambda **given: calls.append(given) or (engine, None, None, None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    spread = told(**ZERO3)
    assert spread is not None and spread.zero is not None and spread.zero["stage"] == 3
    spread.spread(tiny_model, torch.device("cpu"))
    (given,) = calls
    assert given["model"] is tiny_model
    assert given["config"]["zero_optimization"]["stage"] == 3
    assert "optimizer" not in given
    tiny_model(torch.tensor([[1, 2]]))
    assert resets == [1]
    module._ENGINES.clear()


@pytest.mark.parametrize(
    ("name", "kind"), [("accelerate_fsdp2", DistributedType.FSDP), ("accelerate_zero3", DistributedType.DEEPSPEED)]
)
def test_accelerate_reads_the_configs(name: str, kind: DistributedType) -> None:
    config = load_config_from_file(str(ROOT / "recipes" / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert config.mixed_precision == "no"
    if kind == DistributedType.DEEPSPEED:
        plugin = DeepSpeedPlugin(zero_stage=config.deepspeed_config["zero_stage"])
        assert plugin.deepspeed_config["zero_optimization"]["stage"] == 3
