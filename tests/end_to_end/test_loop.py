"""The whole loop on a tiny model: promote, refuse, quarantine, roll back, resume; nothing lost on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm import pipeline
from incremental_llm.adapters import load
from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.artifacts import verify_folder
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError, IntegrityError, NothingToTrainError, SuiteError
from incremental_llm.registry import Registry
from incremental_llm.report.history import read_nights
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, copy_suite, night, write_log

Config = Callable[..., RunConfig]


def test_a_night_is_learned_a_false_one_refused_and_a_rollback_undoes_it(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        first = workspace.run()
        assert (first.decision, first.version) == ("promoted", 1), first.reasons
        assert workspace.registry.head().version == 1
        assert first.candidate.suites[pipeline.LEARNED].score == 1.0
        assert len(workspace.registry.get_json(str(workspace.registry.head().corrections))) == 14

        with pytest.raises(NothingToTrainError, match="no new feedback"):
            workspace.run()

        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))
        second = workspace.run()
        assert (second.decision, second.version) == ("rejected", None), second.reasons
        assert workspace.registry.head().version == 1
        assert any("corrections" in reason for reason in second.reasons)
        with pytest.raises(NothingToTrainError, match="no feedback has come since"):
            workspace.run()

        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, BAD, GOOD)))
        third = workspace.run()
        assert third.decision == "quarantined", third.reasons
        spent = workspace.registry.quarantined()
        assert spent == {stored.seq for stored in workspace.store.read(after=28, until=56)}

        undone = workspace.rollback(to=0, reason="a test")
        assert (undone.version, undone.kind, undone.stack.adapters) == (2, "rollback", ())
        assert set(range(1, 29)) <= workspace.registry.quarantined()
        assert not workspace.registry.verify()


def test_the_second_adapter_stands_on_the_frozen_first_and_replay_is_mixed_in(
    tmp_path: Path, tiny_config: Config
) -> None:
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        workspace.run()
        (below,) = adapter_paths(workspace.stack(), workspace.registry.objects)
        digest = verify_folder(below)
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))
        outcome = workspace.run()
        assert outcome.decision == "rejected", outcome.reasons
        assert outcome.mixture.realised["sft"].replay >= 2
        assert verify_folder(below) == digest
        seen = {sighting.adapter for sighting in workspace.registry.adapters_that_saw("u0")}
        assert len(seen) == 2


def test_a_damaged_adapter_neither_serves_nor_is_measured(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        assert workspace.run().decision == "promoted"
        (adapter,) = adapter_paths(workspace.stack(), workspace.registry.objects)
        weights = adapter / "adapter_model.safetensors"
        flipped = bytearray(weights.read_bytes())
        flipped[-9] ^= 1
        weights.write_bytes(flipped)
        for use in (workspace.load, lambda: workspace.merge("production", tmp_path / "merged", rank=2)):
            with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors .*differ"):
                use()


def test_own_corrections_are_evidence_only_where_no_new_suite_is(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config(anchor={"weight": 0.1, "rows_per_step": 2, "max_new_tokens": 4, "teacher": "base"})
    copy_suite(config, "other")
    roles = config.suites.model_copy(update={"new": ("tiny",), "old": ("other",)})
    with Workspace.create(config.model_copy(update={"suites": roles})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        outcome = workspace.run()
        assert set(outcome.candidate.suites) == {"tiny", "other"}
        assert outcome.decision == "rejected", (
            outcome.reasons
        )  # no suite item became better: knowing its lesson is no proof


@pytest.mark.parametrize("stage", ["put_object", "put_json", "commit_increment"])
def test_a_run_killed_at_a_stage_continues_to_the_same_version(
    stage: str, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    log = write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD))

    class Killed(BaseException):
        pass

    def die(*_args: Any, **_kwargs: Any) -> None:
        raise Killed

    with Workspace.create(config) as workspace:
        workspace.import_feedback(log)
        with monkeypatch.context() as patch:
            patch.setattr(type(workspace.registry), stage, die)
            with pytest.raises(Killed):
                workspace.run()
        assert workspace.registry.head().version == 0
        assert not workspace.registry.verify()
    trained = 0

    def count(**arguments: Any) -> Any:
        nonlocal trained
        from incremental_llm.training.increment import train_increment

        before = (arguments["out"] / "adapter" / "manifest.json").is_file()
        trained += not before
        return train_increment(**arguments)

    with Workspace.open(config) as workspace:
        outcome = workspace.run(train=count)
        assert (outcome.decision, outcome.version, trained) == ("promoted", 1, 0)


@pytest.mark.parametrize(("after_the_commit", "nights"), [(False, 0), (True, 1)])
def test_a_night_counts_exactly_when_its_version_does(
    after_the_commit: bool, nights: int, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Registry.commit_increment

    def killed(self: Registry, **arguments: Any) -> None:
        if after_the_commit:
            commit(self, **arguments)
        raise KeyboardInterrupt

    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "commit_increment", killed)
            with pytest.raises(KeyboardInterrupt):
                workspace.run()
        assert workspace.registry.head().version == nights
        assert [n.version for n in read_nights(workspace.registry, config.workspace)] == [1] * nights
        for damaged in ("{", '{"candidate": "x"}', "[]"):
            for path in config.workspace.glob("runs/*/night.json"):
                path.write_text(damaged, encoding="utf-8")
            assert read_nights(workspace.registry, config.workspace) == ()  # a report never fails a night


def test_a_recipe_without_suites_is_refused_before_the_trainers_are_loaded(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        bare = config.model_copy(update={"suites": config.suites.model_copy(update={"old": ()})})
        monkeypatch.setattr(workspace, "config", bare)
        monkeypatch.setitem(sys.modules, "incremental_llm.training.increment", None)
        with pytest.raises(InputError, match="names no suites"):
            workspace.run()


def test_a_suite_that_changed_without_a_new_version_stops_the_night(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.evaluate()
        items = config.suites.folder / "tiny" / "items.jsonl"
        items.write_text(items.read_text(encoding="utf-8").replace("Count to 3", "Count up to 3"), encoding="utf-8")
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with pytest.raises(SuiteError, match="version"):
            workspace.run()
        assert workspace.registry.head().version == 0


def test_feedback_that_becomes_no_example_is_no_success(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        only_served = [event for event in night(1, GOOD, BAD) if event["type"] == "interaction"]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", only_served))
        with pytest.raises(NothingToTrainError, match="no_feedback"):
            workspace.run()
        assert workspace.registry.attempts() == ()


@pytest.mark.parametrize(("native", "precision"), [("bfloat16", "bf16"), ("float32", "fp32")])
def test_precision_is_decided_once_where_the_registry_is_made(
    native: str, precision: str, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(precision="auto")
    monkeypatch.setattr(load, "native_dtype", lambda: native)
    with Workspace.create(config) as workspace:
        assert workspace.registry.head().stack.dtype == native
        assert workspace.config.training.precision == precision
    monkeypatch.setattr(load, "native_dtype", lambda: "another machine's")
    with Workspace.create(config) as workspace:
        assert workspace.config.training.precision == precision
    with Workspace.open(tiny_config(precision="bf16")) as workspace:
        assert workspace.config.training.precision == "bf16"


def test_what_was_judged_in_one_quantisation_is_not_served_in_another(tiny_config: Config) -> None:
    Workspace.create(tiny_config()).close()
    with pytest.raises(InputError, match=r"quantization: expected none, what this registry was judged in"):
        Workspace.open(tiny_config(quantization="nf4"))


def test_this_machine_names_its_native_dtype() -> None:
    assert load.native_dtype() in load.DTYPES
