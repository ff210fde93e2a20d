"""What a night must refuse, survive or put on record, on the tiny model; most of it before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError, SuiteError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.events import parse_event
from incremental_llm.pending import policy_changes
from incremental_llm.report import results_json
from incremental_llm.report.history import history
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]


class Reached(Exception):
    """Training would begin now."""


def no_training(**_arguments: Any) -> Any:
    raise Reached


def served(name: str, user: str, reply: str = BAD) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"Where is the {name} now?"}]
    head = {"type": "interaction", "id": name, "time": "2026-11-01T13:00:00Z", "conversation": name, "user": user}
    return head | {"messages": asked, "reply": reply, "model": "production"}


def corrected(name: str, interaction: str, content: str = GOOD) -> dict[str, Any]:
    head = {"type": "correction", "id": name, "time": "2026-11-02T13:00:00Z", "interaction": interaction}
    return head | {"reviewer": "r9", "content": content}


@pytest.mark.parametrize("reply", [GOOD, ""], ids=["confirmed", "empty"])
def test_a_correction_with_nothing_to_compare_it_to_does_not_stop_the_night(
    reply: str, tmp_path: Path, tiny_config: Config
) -> None:
    with Workspace.create(tiny_config()) as workspace:
        events = [*night(1, GOOD, BAD), served("i1", "alice", reply), corrected("k1", "i1")]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        assert "k1" in {c.event_id for c in workspace.compile_preview().corrections}
        with pytest.raises(Reached):
            workspace.run(train=no_training)


def test_only_those_with_the_right_to_it_change_the_policy(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"boss"})})
    config = config.model_copy(update={"compile": allowed})
    store = FeedbackStore(f"sqlite:///{tmp_path / 'f.db'}")
    head = {"type": "policy_change", "time": "2026-11-01T13:00:00Z", "supersedes": ["k1"]}
    store.append(parse_event(head | {"id": f"by-{who}", "reviewer": who}) for who in ("mallory", "boss", "boss2"))
    assert [c.id for c in policy_changes(store, store.head(), config, ())] == ["by-boss"]
    assert policy_changes(store, store.head(), config, {2}) == ()
    assert len(policy_changes(store, store.head(), tiny_config(), ())) == 3
    store.close()


def test_the_user_who_asked_and_a_row_too_long_to_train_are_on_record(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config(max_length=96)
    with Workspace.create(config) as workspace:
        long = corrected("k-long", "i-long", " ".join(["the shop answers: yes"] * 20))
        events = [*night(1, GOOD, BAD), served("i-old", "alice"), served("i-long", "bob"), long]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        first = workspace.run()
        assert first.decision == "promoted", first.reasons
        assert any("longer than training.max_length" in note for note in first.notes)
        (seen,) = workspace.registry.sightings("k-long")
        assert seen.outcome == "too_long_to_train"
        assert workspace.registry.adapters_that_saw("alice") == ()
        assert workspace.registry.adapters_that_saw("bob") == ()
        data = history(workspace.registry, config.workspace, title="t", seed=0)
        assert results_json(data)["against_base"]["tiny"]["n"] == 12

        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", [corrected("k-old", "i-old")]))
        workspace.run()
        (adapter,) = workspace.registry.adapters_that_saw("alice")
        assert adapter.events == 1

        dropped = config.suites.model_copy(update={"old": ("tiny2",)})
        shutil.copytree(config.suites.folder / "tiny", config.suites.folder / "tiny2")
        head = config.suites.folder / "tiny2" / "suite.yaml"
        head.write_text(head.read_text(encoding="utf-8").replace("name: tiny", "name: tiny2"), encoding="utf-8")
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", [served("i3", "eve"), corrected("k3", "i3")]))
        workspace.config = config.model_copy(update={"suites": dropped})
        for attempt in (workspace.plan, lambda: workspace.run(train=no_training)):
            with pytest.raises(InputError, match="was judged on tiny, which this recipe does not name"):
                attempt()

    moved = config.model_copy(update={"database": f"sqlite:///{tmp_path / 'other.db'}"})
    with Workspace.open(moved) as workspace:
        workspace.import_feedback(tmp_path / "n2.jsonl")
        workspace.import_feedback(write_log(tmp_path / "n4.jsonl", night(2, GOOD, BAD)))
        with pytest.raises(InputError, match="expected the log that version 1 was made from"):
            workspace.run(train=no_training)


def test_an_empty_registry_of_a_killed_init_is_no_workspace(tiny_config: Config) -> None:
    config = tiny_config()
    config.workspace.mkdir()
    (config.workspace / "registry.db").touch()
    with Workspace.create(config) as workspace:
        assert workspace.registry.head().version == 0


def test_a_refused_line_is_shown_once(tmp_path: Path, tiny_config: Config) -> None:
    log = write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD))
    log.write_text("no JSON\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    with Workspace.create(tiny_config()) as workspace:
        for _ in range(2):
            assert len(workspace.import_feedback(log).refused) == 1
        (line,) = workspace._refused_lines([])
        assert line.startswith("n1.jsonl line 1: expected JSON")


def test_what_ends_a_suites_truth_is_part_of_its_version(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.evaluate()
        head = config.suites.folder / "tiny" / "suite.yaml"
        head.write_text(head.read_text(encoding="utf-8") + "superseded_by: [c1]\n", encoding="utf-8")
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with pytest.raises(SuiteError, match="version"):
            workspace.run(train=no_training)


@pytest.mark.parametrize("role", ["new", "watch"])
def test_a_superseded_suite_in_another_role_is_refused_before_training(
    role: str, tmp_path: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    head = config.suites.folder / "tiny" / "suite.yaml"
    head.write_text(head.read_text(encoding="utf-8") + "superseded_by: [c1]\n", encoding="utf-8")
    roles = config.suites.model_copy(update={"old": (), role: ("tiny",)})
    change = {"type": "policy_change", "id": "c1", "time": "2026-11-01T14:00:00Z", "reviewer": "r0", "supersedes": []}
    with Workspace.create(config.model_copy(update={"suites": roles})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), change]))
        for attempt in (workspace.plan, lambda: workspace.run(train=no_training)):
            with pytest.raises(InputError, match="Give it one role"):
                attempt()
