"""A stack that grows in place: one adapter that goes on, or several that become one; rollback and lineage hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.registry import versions_holding
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log


@pytest.mark.parametrize(
    "growth",
    [
        {"growth": "continue", "ewc": {"weight": 0.01}},
        {"growth": "consolidate", "consolidate_after": 1, "replay_kl": {"weight": 0.1}, "dark": {"weight": 1e-3}},
    ],
    ids=["continue", "consolidate"],
)
def test_the_new_adapter_takes_the_place_of_the_old_one(
    growth: dict[str, Any], tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    config = tiny_config(**growth)
    lenient = config.gate.model_copy(update={"max_correction_losses": 1.0, "max_negative_flips": 1.0})
    config = config.model_copy(update={"gate": lenient})  # two nights that contradict each other, both promoted
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        first = workspace.run()
        assert first.version == 1, first.reasons
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))
        second = workspace.run()
        assert second.version == 2, second.reasons
        registry = workspace.registry
        one, two = registry.get(1).stack.adapters, registry.get(2).stack.adapters
        assert len(one) == len(two) == 1 and one != two
        assert not registry.verify()
        assert versions_holding(registry.list(), one) == (1, 2)  # what the first one saw, the second holds
        assert workspace.rollback(to=1, reason="a test").stack.adapters == one
        assert not registry.verify()
