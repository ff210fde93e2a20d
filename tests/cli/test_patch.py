"""illm patch: one call, and what moved as a table."""

from __future__ import annotations

from pathlib import Path

from incremental_llm.errors import InputError, TrainingError


def test_a_patch_shows_the_answer_and_what_else_moved(illm, workspace) -> None:
    done = illm("patch", "k1", "-p", "what else?", "--may-move", "0.5", "--out", "there")
    assert done.exit_code == 0
    assert workspace.calls == [("patch", "k1", Path("there"), ("what else?",), 0.5)]
    assert "before: no" in done.stdout and "after:  yes" in done.stdout
    assert "NLL of the correction 4.500 -> 0.250 nats a token" in done.stdout
    assert "moved: 'where?': 'here' -> 'there'" in done.stdout
    assert "12 steps on 1000 parameters, scaled to 0.50; 9.5 s for k1; adapter in patches/k1" in done.stdout
    near = next(line for line in done.stdout.splitlines() if "neighbouring" in line)
    assert near.split()[1:4] == ["8", "1", "2"]  # checked, moved, near ties


def test_a_refused_patch_is_a_failure_and_a_wrong_event_wrong_input(illm, workspace) -> None:
    assert illm("patch", "k1").exit_code == 0
    assert workspace.calls[-1] == ("patch", "k1", None, (), 0.0)
    workspace.fail = TrainingError("the patch is not local")
    done = illm("patch", "k1")
    assert done.exit_code == 1 and "error: the patch is not local" in done.stderr
    workspace.fail = InputError("patch 'k9': expected the id of a correction")
    assert illm("patch", "k9").exit_code == 2
    assert illm("patch", "k1", "--may-move", "2").exit_code == 2
