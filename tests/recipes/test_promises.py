"""The demo's promises are held against its figures; what was not measured is not kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "promises.py"
NO: dict[str, Any] = {"decision": "rejected", "version": None}
TAUGHT = {"general": 0, "one": 1, "old_one": 1, "two": 2, "three": 3}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("promises", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "promises", module)
    spec.loader.exec_module(module)
    return module


def results() -> dict[str, Any]:
    """A run that keeps every promise, just so."""
    scores = {
        "general": (0.5, 0.5, 0.5, 0.5),
        "one": (0.30, 0.80, 0.9, 0.72),
        "old_one": (0.0, 0.75, 0.7, 0.0),
        "two": (0.0, 0.0, 0.75, 0.7),
        "three": (0.0, 0.0, 0.0, 0.9),
    }
    versions = ("base", "v1", "v2", "v3")
    return {
        "scores": {s: {v: {"score": x} for v, x in zip(versions, row, strict=True)} for s, row in scores.items()},
        "against_base": {"general": {"low": -0.049, "high": 0.03}},
        "nights": [
            *({"decision": "promoted", "version": n} for n in (1, 2, 3)),
            {"decision": "rejected", "version": None},
        ],
    }


def broken(script: ModuleType, run: dict[str, Any]) -> list[str]:
    return [promise.line for promise in script.promises(run, TAUGHT, ("old_one",)) if not promise.kept]


def test_a_run_that_keeps_all_breaks_none(script: ModuleType) -> None:
    assert broken(script, results()) == []


@pytest.mark.parametrize(
    ("suite", "version", "score", "said"),
    [
        ("one", "base", 0.31, "BROKEN  one goes from at most 30% to at least 75% in night 1: 31.0% to 80.0%"),
        ("three", "v3", 0.74, "BROKEN  three goes from at most 30% to at least 75% in night 3: 0.0% to 74.0%"),
        ("one", "v3", 0.71, "BROKEN  one keeps at least 90% of its score after night 1: 80.0% then, 71.0% at the end"),
    ],
)
def test_each_figure_has_its_bound(script: ModuleType, suite: str, version: str, score: float, said: str) -> None:
    run = results()
    run["scores"][suite][version]["score"] = score
    assert broken(script, run) == [said]


def test_general_has_an_interval_to_keep(script: ModuleType) -> None:
    run = results()
    run["against_base"]["general"]["low"] = -0.05
    assert "-5.0 to +3.0 points" in broken(script, run)[0]


def test_a_false_night_that_goes_live_is_seen(script: ModuleType) -> None:
    run = results()
    run["nights"][3] = {"decision": "promoted", "version": 4}
    assert broken(script, run) == [
        "BROKEN  nights 1 to 3 are promoted and the false one is not: promoted, promoted, promoted, promoted"
    ]


def test_what_a_refused_night_did_not_make_is_not_measured(script: ModuleType) -> None:
    run = results()
    run["nights"][2] = NO
    for row in run["scores"].values():
        row["v3"] = None
    assert len(broken(script, run)) == 5  # decisions, three, one, two, general
    assert all("not measured" in line for line in broken(script, run)[1:])
