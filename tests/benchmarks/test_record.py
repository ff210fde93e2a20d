"""What benchmarks keep, and the page that is made of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of the folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


recorder = script("record")
pages = script("results_page")


def test_a_record_holds_all_that_is_needed_to_measure_again(tmp_path: Path) -> None:
    path = recorder.record(
        "speed", {"tokens_per_second": 12.5, "rows": 3}, "python benchmarks/speed.py", folder=tmp_path
    )
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "speed.json"
    assert set(kept) == {"date", "machine", "versions", "command", "figures"}
    assert kept["figures"] == {"tokens_per_second": 12.5, "rows": 3}
    assert kept["command"] == "python benchmarks/speed.py"
    assert "CPU cores" in kept["machine"]
    assert kept["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_machine_is_described_without_its_name() -> None:
    import socket

    assert socket.gethostname() not in recorder.machine()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, "12", [1.0]])
def test_what_is_no_finite_number_is_refused_and_nothing_is_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite number for 'b'"):
        recorder.record("speed", {"a": 1.0, "b": value}, "make demo", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "figures", "command", "said"),
    [
        ("../speed", {"a": 1.0}, "make demo", "a name like"),
        ("Speed", {"a": 1.0}, "make demo", "a name like"),
        ("speed", {}, "make demo", "measured nothing"),
        ("speed", {"a": 1.0}, " ", "the command"),
    ],
)
def test_a_record_that_could_not_be_read_later_is_refused(
    name: str, figures: dict[str, float], command: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        recorder.record(name, figures, command, folder=tmp_path)


def test_the_page_shows_every_result_and_the_notes_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "NOTES.md").write_text("## What did not work\n\n- **one thing**: why\n", encoding="utf-8")
    recorder.record("b_size", {"bytes": 1_200_000}, "make b", folder=tmp_path / "results")
    recorder.record("a_speed", {"ratio": 1.23456, "gain|loss": -0.5}, "make a", folder=tmp_path / "results")
    page = pages.page(tmp_path)
    assert page.index("## a_speed") < page.index("## b_size") < page.index("## What did not work")
    assert "| ratio | 1.235 |" in page
    assert "| gain\\|loss | -0.5 |" in page
    assert "| bytes | 1200000 |" in page
    assert "    make a\n" in page
    assert page.endswith("## What did not work\n\n- **one thing**: why\n")


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    (tmp_path / "NOTES.md").write_text("## What did not work\n", encoding="utf-8")
    assert "Nothing has been measured yet." in pages.page(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"date": "2026-11-01"}', json.dumps({"figures": {"a": None}})])
def test_a_file_that_is_no_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "NOTES.md").write_text("", encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "odd.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"odd\.json"):
        pages.page(tmp_path)


def test_a_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "NOTES.md").write_text("", encoding="utf-8")
    path = recorder.record("speed", {"a": 1.0}, "make a", folder=tmp_path / "results")
    path.write_text(path.read_text(encoding="utf-8").replace("1.0", "NaN"), encoding="utf-8")
    with pytest.raises(ValueError, match="finite number"):
        pages.page(tmp_path)


def test_the_committed_page_is_made_from_the_committed_results() -> None:
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == pages.page(), "run: make results"
