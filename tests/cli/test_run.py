from __future__ import annotations

import json

import pytest

from incremental_llm.errors import NothingToTrainError, TrainingError, WorkspaceBusyError


@pytest.mark.parametrize(
    ("decision", "code", "said"),
    [
        ("promoted", 0, "promoted: production is now version 2"),
        ("rejected", 20, "rejected: production is unchanged"),
        ("quarantined", 30, "rejected and quarantined: production is unchanged"),
    ],
)
@pytest.mark.parametrize("command", ["run", "nightly"])
def test_the_decision_is_the_exit_code(illm, workspace, command: str, decision: str, code: int, said: str) -> None:
    workspace.outcome.decision = decision
    done = illm(command)
    assert done.exit_code == code
    assert said in done.stdout
    assert "because shop_night1 went from 20 % to 90 %" in done.stdout
    assert "Replay: +3 old rows interleaved (10.0 % of 30)." in done.stdout
    assert "training sft 2/2 (100 %), loss 0.2500" in done.stderr
    assert "next: illm" in done.stderr
    assert workspace.closed == 1


def test_run_shows_what_the_gate_looked_at(illm, workspace) -> None:
    shown = illm("run").stdout
    assert "+55.0 to +85.0" in shown
    assert "right before and wrong now in shop_night1: n7 and 2 more" in shown


def test_run_as_json(illm, workspace) -> None:
    workspace.outcome.decision = "rejected"
    workspace.outcome.version = None
    done = illm("run", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 20
    assert (found["decision"], found["version"]) == ("rejected", None)
    assert found["checks"][0]["lost"] == ["n7"]
    assert found["scores"]["candidate"]["general"]["score"] == 0.5
    assert found["data"]["dropped"] == 1
    assert "next:" not in done.output


@pytest.mark.parametrize("command", ["run", "nightly"])
def test_nothing_to_train_is_exit_code_10(illm, workspace, command: str) -> None:
    workspace.fail = NothingToTrainError("no new feedback since event 5")
    done = illm(command)
    assert done.exit_code == 10
    assert "no new feedback since event 5" in done.output


@pytest.mark.parametrize("command", ["run", "nightly"])
def test_a_held_workspace_is_exit_code_75(illm, workspace, command: str) -> None:
    workspace.fail = WorkspaceBusyError("illm: expected no other run, found process 7")
    done = illm(command)
    assert done.exit_code == 75
    assert "expected no other run, found process 7" in done.output


@pytest.mark.parametrize("command", ["run", "nightly"])
def test_a_failure_says_during_what(illm, workspace, command: str, monkeypatch) -> None:
    def fail(progress, train=None) -> None:
        progress("training dpo", 3, 9, None)
        raise TrainingError("expected a finite loss, found nan at step 4")

    monkeypatch.setattr(workspace, "run", fail)
    done = illm(command)
    assert done.exit_code == 1
    assert "stopped during training dpo 3/9" in done.stderr
    assert "error: expected a finite loss, found nan at step 4" in done.stderr


def test_dry_run_says_what_would_happen(illm, workspace) -> None:
    done = illm("run", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout == "train on 3 records\nmeasure 2 suites\n"
    assert workspace.calls == [("plan",)]
    assert json.loads(illm("run", "--dry-run", "--json").stdout) == {"plan": ["train on 3 records", "measure 2 suites"]}


def test_nightly_as_json(illm, workspace) -> None:
    found = json.loads(illm("nightly", "--json").stdout)
    assert found["exit_code"] == 0
    assert found["summary"][0] == "promoted: production is now version 2"
