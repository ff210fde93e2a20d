"""The front pages' examples run, and importing them costs no torch."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

MODULES = (
    "feedback",
    "feedback.events",
    "feedback.redact",
    "dataset",
    "dataset.dedup",
    "dataset.decontaminate",
    "dataset.rephrases",
)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"incremental_llm.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("package", ["feedback", "dataset"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(f"incremental_llm.{package}")
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(module, name) for name in module.__all__)


def test_no_torch() -> None:
    code = "import sys, incremental_llm.dataset, incremental_llm.feedback; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
