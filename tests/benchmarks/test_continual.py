"""The continual-learning benchmark on a toy: two tasks, the tiny model, seconds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from incremental_llm.config import RunConfig
from incremental_llm.errors import ConfigError, InputError
from incremental_llm.training import increment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLAN: dict[str, Any] = {
    "name": "toy",
    "orders": {"1": ["colour", "size"], "2": ["size", "colour"]},
    "settings": {
        "cpu": {
            "train_rows": 8,
            "dev_rows": 2,
            "test_rows": 3,
            "input_tokens": 6,
            "training": {"precision": "fp32", "lora": {"rank": 2, "alpha": 4}, "anchor": {"weight": 0.0}},
            "phase": {"learning_rate": 5e-3, "epochs": 1, "batch_size": 4},
            "mtl": [{}, {"epochs": 2}],
        }
    },
    "methods": {
        "plain": {},
        "default": {"training": {"growth": "continue"}, "replay": {"ratio": 0.2}},
    },
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Callable[[str], ModuleType]]:
    """Scripts of the folder, which is no package, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten rows to train on, four for dev, four for test, of each of two tasks."""
    folder = tmp_path / "data"
    folder.mkdir()
    for task, answers in (("colour", ("red", "blue")), ("size", ("big", "small"))):
        for part, rows in (("train", range(10)), ("dev", range(10, 14)), ("test", range(14, 18))):
            lines = [
                json.dumps(
                    {"id": f"{task}{n}", "instruction": f"{task}?", "input": f"{n} it", "output": answers[n % 2]}
                )
                for n in rows
            ]
            (folder / f"{task}.{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def bench(scripts: Any, data: Path, tmp_path: Path, tiny_model_dir: Path, capsys: Any) -> Callable[..., Any]:
    """Run the benchmark; returns (exit code, figures or None, what was printed)."""

    def run(*more: str, plan: dict[str, Any] = PLAN) -> tuple[int, Any, str]:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        places = {"data": data, "base": tiny_model_dir, "plan": tmp_path / "plan.yaml", "out": tmp_path / "out"}
        given = [f"--{name}={path}" for name, path in places.items()] + [f"--results={tmp_path / 'results'}"]
        code = scripts("continual").main([*given, "--setting=cpu", *more])
        kept = tmp_path / "results" / "toy.json"
        figures = json.loads(kept.read_text(encoding="utf-8"))["figures"] if kept.is_file() else None
        printed = capsys.readouterr()
        return code, figures, printed.out + printed.err

    return run


def run_of(tmp_path: Path, name: str) -> Any:
    return json.loads((tmp_path / "results" / "toy" / "cpu" / f"{name}.json").read_text(encoding="utf-8"))["run"]


def test_methods_and_bounds_become_figures_tables_and_heat_maps_and_are_run_once(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("--methods=mtl,single,default", "--orders=1")
    code, figures, printed = bench(*only)
    assert code == 0, printed
    per_run = {f"{name}_default_1" for name in ("op", "bwt", "fwt", "forgetting", "plasticity", "seconds")}
    bounds = {"mtl_op", "single_colour", "single_size", "base_colour", "base_size"}
    assert per_run | bounds | {"bwt", "seeds", "mtl_dev_candidate1"} <= figures.keys()
    assert figures["mtl_candidates"] == 2
    assert "| default |" in printed
    assert "multi-task bound (MTL)" in printed
    assert (tmp_path / "out" / "cpu" / "default.png").read_bytes().startswith(b"\x89PNG")

    versions = run_of(tmp_path, "default/order1-seed0")["versions"]
    assert [version["task"] for version in versions] == ["colour", "size"]
    assert [version["replayed"] for version in versions] == [0, 8]  # all of the buffer: `minimum` is more
    assert all(len(right) == 3 for version in versions for right in version["right"].values())

    monkeypatch.setattr(importlib.import_module("continual_runs"), "train_increment", lambda **_: pytest.fail("again"))
    (tmp_path / "out").rename(tmp_path / "elsewhere")  # where all runs are kept, nothing else is needed
    assert bench(*only)[1] == figures
    assert bench("--methods=single", "--orders=2")[1] == figures  # what is finished stays in the figures


def test_a_killed_run_continues_to_the_same_end(
    bench: Any, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, trained, only = scripts("continual_runs"), [], ("--methods=default", "--orders=1", "--no-record")

    def counted(**given: Any) -> Any:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(given["out"])
        return increment.train_increment(**given)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train_increment", counted)
        assert bench(*only)[0] == 130
    assert len(list((tmp_path / "out/cpu/increments").glob("*/adapter/adapter_model.safetensors"))) == 1
    assert bench(*only)[0] == 0
    continued = run_of(tmp_path, "default/order1-seed0")["versions"]
    assert continued[0]["tokens"] > 0

    (tmp_path / "out").rename(tmp_path / "before")
    (tmp_path / "results").rename(tmp_path / "results before")
    assert bench(*only)[0] == 0
    whole = run_of(tmp_path, "default/order1-seed0")["versions"]
    assert [(v["right"], v["tokens"]) for v in whole] == [(v["right"], v["tokens"]) for v in continued]


def test_runs_that_begin_alike_share_increments_and_another_plan_is_refused(bench: Any, tmp_path: Path) -> None:
    only = ("--methods=plain,single", "--orders=1")
    assert bench(*only)[0] == 0
    assert len(list((tmp_path / "out/cpu/increments").iterdir())) == 3  # colour, size after it, size alone
    single = run_of(tmp_path, "single/colour-seed0")
    assert single["right"]["colour"] == run_of(tmp_path, "plain/order1-seed0")["versions"][0]["right"]["colour"]
    method = {"plain": {"phase": {"epochs": 2}}}
    code, _, printed = bench(*only, plan=PLAN | {"methods": method})
    assert code == 2
    assert "is a run with another settings" in printed


def test_what_the_plan_lacks_is_named(bench: Any, scripts: Any, tmp_path: Path) -> None:
    code, figures, printed = bench("--methods=magic")
    assert (code, figures) == (2, None)
    assert "expected a method of the plan (mtl, single, plain, default), found 'magic'" in printed
    code, _, printed = bench("--methods=plain", plan=PLAN | {"methods": {"plain": {"training": {"growht": "stack"}}}})
    assert code == 2
    assert "growht" in printed
    with pytest.raises(ConfigError, match=r"settings\.cpu\.train_rows"):
        plan = PLAN | {"settings": {"cpu": PLAN["settings"]["cpu"] | {"train_rows": 0}}}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        scripts("continual_plan").read_plan(tmp_path / "plan.yaml")


def test_rows_are_cut_and_a_question_of_test_is_not_trained_on(scripts: Any, data: Path, tiny_tokenizer: Any) -> None:
    tasks = scripts("continual_tasks")
    (task,) = tasks.read_tasks(data, ["colour"], tiny_tokenizer, None).values()
    assert task.train[3].prompt[-1].content == "colour?\n3 it"
    assert len(task.training_rows(4, 0)) == 4
    assert task.training_rows(10, 0) != task.training_rows(10, 1)
    with pytest.raises(InputError, match="5 questions of colour"):  # one token is left: 1, as of 14
        tasks.read_tasks(data, ["colour"], tiny_tokenizer, 1)
    path = data / "colour.train.jsonl"
    path.write_text((data / "colour.test.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match="4 questions of colour are in train or dev and in test"):
        tasks.read_tasks(data, ["colour"], tiny_tokenizer, None)
    path.write_text('{"input": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"colour\.train\.jsonl:1"):
        tasks.read_tasks(data, ["colour"], tiny_tokenizer, None)


def test_metrics_are_those_of_the_matrix(scripts: Any) -> None:
    report = scripts("continual_report")
    versions = [
        {"seconds": 1.0, "cpu_seconds": 1.0, "right": {"a": [1, 1], "b": [1, 0]}},
        {"seconds": 2.0, "cpu_seconds": 2.0, "right": {"a": [1, 0], "b": [1, 1]}},
    ]
    result = report.result_of(["a", "b"], {"versions": versions}, {"a": 0.0, "b": 0.25})
    found = {name: result.metric(name) for name in report.METRICS}
    assert found == {"op": 0.75, "bwt": -50.0, "fwt": 0.25, "forgetting": 0.5, "plasticity": 1.0}
    better = report.result_of(["a", "b"], {"versions": [versions[1], versions[1]]}, {"a": 0.0, "b": 0.25})
    runs = {("default", "1"): [result], ("default", "2"): [better]}
    figures = report.figures(
        report.Report(runs, {"a": 0.0, "b": 0.25}, mtl=[[0.8, 0.8], [0.6]], mtl_dev=[0.5, 0.7]), "default"
    )
    assert figures["op_over_mtl"] == pytest.approx(0.75 / 0.8)
    assert figures["bwt"] == (-50.0 + 0.0) / 2
    assert figures["seconds_default_1"] == 3.0


def test_every_method_of_the_plan_is_settings_that_training_knows(scripts: Any) -> None:
    plans = scripts("continual_plan")
    plan = plans.read_plan(BENCHMARKS / "continual.yaml")
    assert {"sequential", "ewc", "olora", "replay_2", "replay_10", "default"} <= plan.methods.keys()
    for setting in plan.settings.values():
        for method in plan.methods.values():
            plans.settings_of(setting, method, seed=0)
        for candidate in setting.mtl:
            plans.settings_of(setting, plans.Method(), seed=0, **candidate)


def test_the_default_method_is_what_init_writes_but_for_sizes_and_the_share_of_replay(scripts: Any) -> None:
    plans = scripts("continual_plan")
    plan = plans.read_plan(BENCHMARKS / "continual.yaml")
    default, recipe = plan.methods["default"], RunConfig()
    sizes = {"precision", "save_steps", "max_length", "phases"}
    for setting in plan.settings.values():
        found = plans.settings_of(setting, default, seed=0)
        assert found.model_dump(exclude=sizes) == recipe.training.model_dump(exclude=sizes)
        own = {"learning_rate", "epochs", "batch_size"}
        assert found.phases[0].model_dump(exclude=own) == recipe.training.phases[-1].model_dump(exclude=own)
    assert default.replay.model_dump(exclude={"ratio"}) == recipe.replay.model_dump(exclude={"ratio"})
