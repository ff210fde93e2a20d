"""The demo's script takes up a night only where it was begun with the same recipe and log."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
