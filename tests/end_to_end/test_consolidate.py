"""Several adapters become one version: measured, judged and committed like a night; refused, nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig, parse_config
from incremental_llm.errors import ConfigError, InputError
from incremental_llm.nightly import run_nightly
from incremental_llm.registry import increments_in, versions_holding
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log


def told(config: RunConfig, **consolidation: Any) -> RunConfig:
    tree = config.model_dump(mode="json")
    tree["consolidation"] |= consolidation
    tree["gate"] |= {"max_correction_losses": 1.0, "max_negative_flips": 1.0}
    return parse_config(tree, source="the test")


@pytest.fixture
def two_nights(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> RunConfig:
    """A workspace whose production has two adapters."""
    config = told(tiny_config(ewc={"weight": 0.01}))
    with Workspace.create(config) as workspace:
        for number, (chosen, rejected) in enumerate([(GOOD, BAD), (BAD, GOOD)], 1):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, chosen, rejected)))
            outcome = workspace.run()
            assert outcome.version == number, outcome.reasons
    return config


def test_the_sum_of_a_stack_is_a_version_that_answers_alike(two_nights: RunConfig, tmp_path: Path) -> None:
    with Workspace.open(two_nights) as workspace:
        registry = workspace.registry
        before = registry.head()
        plan = workspace.plan_consolidation()
        assert plan.relative_error == 0.0 and plan.before.adapters == 2
        assert plan.after.rank == plan.before.rank == sum(plan.ranks)
        assert registry.list()[-1] == before  # a plan changes nothing

        found = workspace.consolidate()
        assert found.version == 3, found
        after = registry.head()
        assert len(after.stack.adapters) == 1 and after.cursor == before.cursor
        assert (after.replay, after.corrections, after.dataset) == (before.replay, before.corrections, None)
        assert "2 adapters as one of rank" in after.note
        for name, suite in found.production.suites.items():
            assert found.candidate.suites[name].outcomes == suite.outcomes
        assert not registry.verify() and not registry.attempts() and not registry.quarantined()
        assert 3 in versions_holding(registry.list(), before.stack.adapters[:1])  # whom the first saw, it holds
        folder = registry.object_path(after.stack.adapters[0])
        assert (folder / "training.json").is_file() and (folder / "fisher.safetensors").is_file()
        assert not list(two_nights.workspace.glob(".consolidation-*"))

        with pytest.raises(InputError, match="two adapters or more to make one of, found 1 of the 1"):
            workspace.consolidate()
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, GOOD, BAD)))
        outcome = workspace.run()  # the next night goes on from it
        assert outcome.version == 4, outcome.reasons
        assert registry.head().stack.adapters[0] == after.stack.adapters[0]
        assert increments_in(registry.list(), 4) == (4, 3, 2, 1)
        back = workspace.rollback(to=2, reason="a test")
        assert back.stack == before.stack and not registry.verify()
        assert len(registry.quarantined()) == len(night(3, GOOD, BAD))  # of the night, none of the consolidation


def test_a_refused_one_changes_nothing_and_says_why(two_nights: RunConfig) -> None:
    """Almost without the newest adapter, what it taught is lost; rank 1 makes it small besides."""
    strict = told(two_nights, rank=1, scales=[0.01])
    strict = strict.model_copy(update={"gate": strict.gate.model_copy(update={"max_correction_losses": 0.0})})
    with Workspace.open(strict) as workspace:
        registry = workspace.registry
        before, refs = registry.list(), registry.refs()
        plan = workspace.plan_consolidation()
        assert plan.relative_error > 0.1 and plan.after.rank == 1 and plan.after.bytes < plan.before.bytes
        found = workspace.consolidate()
        assert found.version is None and found.decision == "rejected"
        assert any("corrections accepted earlier were lost" in reason for reason in found.checks.reasons)
        assert (registry.list(), registry.refs()) == (before, refs)
        assert not registry.attempts() and not registry.quarantined() and not registry.verify()


def test_the_best_scale_of_the_newest_adapter_is_judged_more_strictly(two_nights: RunConfig) -> None:
    config = told(two_nights, scales=[1.0, 0.5, 0.01])
    with Workspace.open(config) as workspace:
        found = workspace.consolidate()
        assert found.scores.keys() == {1.0, 0.5, 0.01}
        best = max(found.scores.values())
        assert found.scores[found.plan.scale] == best
        nearest = min((scale for scale in found.scores if found.scores[scale] == best), key=lambda s: abs(s - 1))
        assert found.plan.scale == nearest
        stricter = config.gate.model_copy(update={"confidence": 1 - 0.05 / 3})
        from incremental_llm.chat import json_digest

        assert found.checks.policy_digest == json_digest(stricter.model_dump(mode="json"))


def test_a_nightly_run_consolidates_when_the_recipe_has_it(two_nights: RunConfig, tmp_path: Path) -> None:
    config = told(two_nights, after=2, rank=64)
    with Workspace.open(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, GOOD, BAD)))
        assert not workspace.consolidation_due()  # two are allowed
    said: list[str] = []
    code, summary = run_nightly(config, said.append, lambda *step: said.append(step[0]))
    assert code == 0, summary
    assert "promoted: production is now version 3" in summary
    assert "consolidated: production is now version 4, 3 adapters as one of rank" in summary
    assert any(line.startswith("consolidating 3 adapters, more than consolidation.after = 2") for line in said)
    with Workspace.open(config) as workspace:
        assert len(workspace.registry.head().stack.adapters) == 1 and not workspace.registry.verify()


def test_where_the_gate_refuses_the_night_still_stands(two_nights: RunConfig, tmp_path: Path) -> None:
    """Without its adapter the night's corrections are lost: more than the night lost of earlier ones."""
    config = told(two_nights, max_rank=40, rank=40, scales=[0.01])
    config = config.model_copy(update={"gate": config.gate.model_copy(update={"max_correction_losses": 0.6})})
    with Workspace.open(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, GOOD, BAD)))
    code, summary = run_nightly(config, lambda line: None, lambda *step: None)
    assert code == 0, summary
    assert "not consolidated, production stays on its stack: 3 adapters as one of rank" in summary
    assert "the newest at 0.01" in summary and "corrections accepted earlier were lost" in summary
    with Workspace.open(config) as workspace:
        assert workspace.registry.head().version == 3 and len(workspace.registry.head().stack.adapters) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"after": 4}, "expected consolidation.rank with after or max_rank"),
        ({"max_rank": 64, "rank": 128}, "rank of at most max_rank, 64, found 128"),
        ({"scales": [1.0, 1.0]}, "expected scales above 0, each once"),
        ({"density": 0.2}, "expected density with a method"),
    ],
)
def test_a_policy_that_could_not_work_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"consolidation": wrong}, source="the test")
    assert not RunConfig().consolidation.automatic  # off unless told
