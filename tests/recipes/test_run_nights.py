"""The demo's script takes up a night only where it was begun with the same recipe and log."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from incremental_llm.config import parse_config
from incremental_llm.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "run_nights.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_nights", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_night_of_another_recipe_or_log_is_not_taken_up(script: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "night1.jsonl"
    log.write_text("{}\n", encoding="utf-8")
    config = parse_config({"workspace": str(tmp_path / "seed0")}, source="the test")
    script.check_same(config, 1, log)
    script.check_same(config, 1, log)
    other = parse_config({"workspace": str(tmp_path / "seed0"), "training": {"seed": 7}}, source="the test")
    with pytest.raises(InputError, match=r"night 1 was begun with another training\. Give another --out"):
        script.check_same(other, 1, log)
    log.write_text("{ }\n", encoding="utf-8")
    with pytest.raises(InputError, match="night 1 was begun with another log"):
        script.check_same(config, 1, log)


def test_the_demo_ends_with_its_results_and_takes_up_where_it_was_stopped(
    script: ModuleType,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two nights and the comparison, with a random model that learns nothing: all of it runs, and both are refused."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(script, "NIGHTS", 2)
    shop = {"shop_night3": 0, "shop_night1": 1, "shop_before_change": 1, "shop_night2": 2}
    monkeypatch.setattr(script, "SUITES", shop)
    recipe = tmp_path / "recipe.yaml"
    tree: dict[str, Any] = yaml.safe_load((SCRIPT.parents[1] / "nightly_smollm2_cpu.yaml").read_text(encoding="utf-8"))
    for phase in tree["training"]["phases"]:
        phase["max_steps"] = 1
    tree["gate"]["margins"] = {}
    tree["base"], tree["training"]["precision"] = str(tiny_model_dir), "fp32"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    out = tmp_path / "demo"
    arguments = ["run_nights.py", "--seed", "3", "--out", str(out), "--recipe", str(recipe), "--baseline"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 20  # nothing of what the demo has to show was shown
    first = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [night["decision"] for night in results["nights"]] == ["rejected", "rejected"]
    assert [night["version"] for night in results["nights"]] == [None, None]
    assert results["seed"] == 3
    assert results["peak_memory_bytes"] > 10**7
    assert set(results["scores"]["shop_night1"]["base"]) == {"score", "low", "high", "n"}
    assert results["baseline"]["scores"].keys() == results["scores"].keys()
    assert "shop_night2" in first
    assert "BROKEN  nights 1 to 2 are promoted and the false one is not: rejected, rejected" in first
    assert results["scores"]["shop_night1"]["v1"] is None
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")

    decided = sorted((out / "seed3" / "runs").glob("*/night.json"))
    times = [path.stat().st_mtime_ns for path in decided]
    assert script.main() == 20
    again = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [path.stat().st_mtime_ns for path in decided] == times
    assert {**again, "peak_memory_bytes": 0} == {**results, "peak_memory_bytes": 0}
