"""A run that is cut ends with the same bits: some of the cases of benchmarks/resume.py, on the tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def resume() -> Any:
    """The script, which is in no package and imports its neighbour."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_resume", BENCHMARKS / "resume.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.parametrize(
    ("objective", "depth", "steps"),
    [
        pytest.param("dpo", 3, (1, 19), marks=pytest.mark.slow),
        ("kto", 0, (7,)),
    ],
)
def test_some_cuts_end_with_the_same_bits(
    objective: str, depth: int, steps: tuple[int, ...], resume: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    torch.set_num_threads(1)
    adapter, kept, call = resume.cases(tiny_model_dir, objective, depth, tmp_path)
    for step in steps:
        assert resume.identical(adapter, kept, call, objective, step, tmp_path / "cut"), step


def test_a_cut_that_differs_is_seen(resume: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    adapter, kept, call = resume.cases(tiny_model_dir, "sft", 0, tmp_path)
    state = kept / "checkpoint-19" / "optimizer.pt"
    (kept / "checkpoint-19" / "manifest.json").unlink()
    torch.save({**torch.load(kept / "checkpoint-10" / "optimizer.pt")}, state)
    from incremental_llm.artifacts import write_manifest

    write_manifest(kept / "checkpoint-19")
    assert not resume.identical(adapter, kept, call, "sft", 19, tmp_path / "cut")
