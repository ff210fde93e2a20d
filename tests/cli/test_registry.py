from __future__ import annotations

import json

import pytest

from incremental_llm.cli import registry
from incremental_llm.cli.registry import _after_problems
from incremental_llm.registry import Problem


def test_list_shows_versions_refs_and_attempts(illm, workspace) -> None:
    shown = illm("registry", "list").stdout
    assert "night 1" in shown
    assert "production" in shown
    assert "general fell by 9 points" in shown
    assert "quarantined events: 1" in shown


def test_list_shows_the_newest_and_says_how_many_there_are_before(illm, workspace) -> None:
    shown = illm("registry", "list", "--last", "1").stdout
    assert "night 1" in shown
    assert "and 1 earlier ones" in shown


def test_show_one_version(illm, workspace) -> None:
    shown = illm("registry", "show").stdout
    assert "version: 1" in shown
    assert f"  - {'a' * 64}" in shown
    assert "  v1 [production]  increment, 2026-11-01 03:00, 1 adapters" in shown
    found = json.loads(illm("registry", "show", "v1".removeprefix("v"), "--json").stdout)
    assert found["cursor"] == 5


def test_an_unknown_ref_is_exit_code_2(illm, workspace) -> None:
    done = illm("registry", "show", "productoin")
    assert done.exit_code == 2
    assert "did you mean 'production'?" in done.stderr


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (("promote", "0"), ("promote", 0, 1)),
        (("promote", "v0"), ("promote", 0, 1)),
        (("rollback", "0", "--reason", "bad"), ("rollback", 0, "bad", 1)),
        (("rollback", "v0", "--reason", "bad"), ("rollback", 0, "bad", 1)),
    ],
)
def test_moving_production_needs_yes_without_a_terminal(illm, workspace, command, call) -> None:
    """And it moves only from the version that was shown: the last argument of each call."""
    refused = illm("registry", *command)
    assert refused.exit_code == 2
    assert "add --yes" in refused.stderr
    assert workspace.calls == []
    shown = illm("registry", *command, "--dry-run")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("would ")
    assert "next: illm registry diff 1 0" in shown.stderr
    assert "next:" not in illm("registry", *command, "--dry-run", "--json").output
    assert workspace.calls == []
    done = illm("registry", *command, "--yes")
    assert done.exit_code == 0
    assert workspace.calls == [call]
    assert "production is now version" in done.stdout


@pytest.mark.parametrize("command", [("promote", "0"), ("rollback", "0", "-r", "bad")])
def test_a_declined_move_says_what_to_look_at(illm, workspace, monkeypatch, command) -> None:
    monkeypatch.setattr(registry, "confirmed", lambda *_args, **_kwargs: False)
    done = illm("registry", *command)
    assert done.exit_code == 0
    assert "next: illm registry diff 1 0" in done.stderr
    assert workspace.calls == []


def test_promoting_what_is_production_already_is_wrong_input(illm, workspace) -> None:
    done = illm("registry", "promote", "1", "--yes")
    assert done.exit_code == 2
    assert "which production is already" in done.stderr


def test_rollback_says_which_events_it_quarantines(illm, workspace) -> None:
    shown = illm("registry", "rollback", "0", "-r", "bad", "--dry-run").stdout
    assert "would roll production back from version 1 to the state of 0, and quarantine events 1 to 5" in shown


def test_quarantine_says_what_decided_it(illm, workspace) -> None:
    shown = illm("registry", "quarantine")
    assert "attempt cccccccccccc" in shown.stdout
    assert "6 to 7" in shown.stdout
    assert "version 3, a rollback" in shown.stdout
    assert "3 events; feedback that was right after all comes back as new events" in shown.stdout
    assert [one["seq"] for one in json.loads(illm("registry", "quarantine", "--json").stdout)["quarantined"]] == [
        6,
        7,
        9,
    ]


def test_rollback_needs_a_reason(illm, workspace) -> None:
    assert illm("registry", "rollback", "0", "--yes").exit_code == 2
    assert workspace.calls == []


def test_verify(illm, workspace) -> None:
    done = illm("registry", "verify")
    assert (done.exit_code, done.stdout) == (0, "all is well: 2 version(s), every object as its digest says\n")
    workspace.registry.problems = ["object ab12: expected its digest, found another"]
    done = illm("registry", "verify")
    assert done.exit_code == 1
    assert "problem: object ab12: expected its digest, found another" in done.stdout
    assert "error: expected every promise of the registry to hold, found 1 broken" in done.stderr
    assert json.loads(illm("registry", "verify", "--json").stdout)["problems"] == workspace.registry.problems


def test_diff(illm, workspace) -> None:
    shown = illm("registry", "diff", "0", "1").stdout
    assert workspace.calls == [("diff", "0", "1")]
    assert "events: 5" in shown
    assert "layer 0" in shown
    assert "not compared: version 0 has no recipe" in shown
    assert "removed" not in shown


def test_an_interrupted_erasure_is_not_made_good_by_a_copy() -> None:
    pending, damaged = Problem(subject="erasure e1", text="not ended"), Problem(subject="object ab", text="missing")
    again = "illm feedback erase --user NAME --yes   (it goes on), then: illm registry verify"
    copy = "restore what is damaged from a copy, then: illm registry verify"
    assert _after_problems([pending]) == (again,)
    assert _after_problems([damaged]) == (copy,)
    assert _after_problems([pending, damaged]) == (copy, again)
