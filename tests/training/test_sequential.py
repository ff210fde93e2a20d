"""The comparison trains one adapter through all increments, and takes up what is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from incremental_llm.dataset.examples import SftExample
from incremental_llm.training import sequential
from incremental_llm.training.sequential import train_sequentially

from .conftest import examples_of, settings_of


def test_one_adapter_goes_on_from_increment_to_increment(
    tmp_path: Path, tiny_model_dir: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [example for example in examples_of("sft") if isinstance(example, SftExample)]

    def train(parts: list[list[SftExample]], out: Path) -> list[dict[str, torch.Tensor]]:
        folders = train_sequentially(
            tiny_model_dir, parts, tiny_tokenizer, settings_of("sft"), out, lambda what, done, total, loss: None
        )
        return [load_file(folder / "adapter_model.safetensors") for folder in folders]

    first, second = train([given[:5], given[5:]], tmp_path / "both")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    (alone,) = train([given[5:]], tmp_path / "alone")
    assert any(not torch.equal(alone[name], second[name]) for name in alone)  # the second stands on the first

    monkeypatch.setattr(sequential, "run_phase", lambda *_: pytest.fail("trained again"))
    again = train([given[:5], given[5:]], tmp_path / "both")
    for before, after in zip((first, second), again, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
