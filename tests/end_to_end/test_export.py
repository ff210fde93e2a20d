"""A workspace hands out what it holds; version 0 is the base itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from incremental_llm import Workspace
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError

Config = Callable[..., RunConfig]


def test_the_base_leaves_for_llamacpp(tmp_path: Path, tiny_config: Config) -> None:
    said: list[str] = []
    with Workspace.create(tiny_config()) as workspace:
        report = workspace.export(0, tmp_path / "base", "gguf", dtype="float32", say=said.append)
        with pytest.raises(InputError, match="'int8'"):
            workspace.export(0, tmp_path / "odd", "gguf", dtype="int8")
    assert report.check.max_abs_logit == 0.0 and report.dtype == "float32"
    assert (tmp_path / "base" / "model.gguf").is_file() and not (tmp_path / "odd").exists()
    assert json.loads((tmp_path / "base" / "lineage.json").read_text())["source"]["version"] == 0
    assert said[0] == "loading 0" and "writing the model in float32" in said
