from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest

from incremental_llm.cli.errors import CrashError, crash_log
from incremental_llm.config import load_config
from incremental_llm.errors import (
    CommitError,
    ConfigError,
    IntegrityError,
    NothingToTrainError,
    SuiteError,
    TrainingError,
    UnknownRefError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (SuiteError("b"), 2),
        (UnknownRefError("c"), 2),
        (NothingToTrainError("d"), 10),
        (TrainingError("e"), 1),
        (IntegrityError("f"), 1),
        (CommitError("g"), 1),
    ],
)
def test_an_error_on_purpose_is_one_line_and_its_exit_code(illm, workspace, error, code) -> None:
    workspace.fail = error
    done = illm("registry", "diff", "0")
    assert done.exit_code == code
    assert done.stderr == f"error: {error}\n"
    assert done.stdout == ""
    assert workspace.closed == 1


def test_an_unexpected_error_is_short_and_its_traceback_is_in_the_workspace(illm, workspace) -> None:
    workspace.fail = RuntimeError("the disk\nis on fire")
    done = illm("run")
    assert done.exit_code == 1
    assert "error: unexpected RuntimeError: the disk\n" in done.stderr
    assert "Traceback" not in done.output
    (crash,) = Path("illm").glob("illm-crash-*.txt")
    assert str(crash) in done.stderr
    assert "RuntimeError: the disk\nis on fire" in crash.read_text(encoding="utf-8")


def test_a_full_disk_is_named_and_says_what_to_do(illm, workspace, monkeypatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workspace.fail = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_text", full)  # the traceback cannot be kept either
    done = illm("run")
    assert done.exit_code == 1
    assert "error: the disk is full" in done.stderr
    assert "free some space" in done.stderr
    assert "Traceback" not in done.output


def test_debug_shows_the_traceback(illm, workspace) -> None:
    workspace.fail = RuntimeError("no")
    assert "Traceback (most recent call last)" in illm("--debug", "run").stderr
    workspace.fail = TrainingError("loss is nan")
    assert "Traceback (most recent call last)" in illm("--debug", "run").stderr


def test_a_crash_without_a_workspace_goes_to_the_temporary_folder(illm, workspace, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(workspace, "open", lambda config: 1 / 0)
    done = illm("registry", "list")
    assert done.exit_code == 1
    assert len(list(tmp_path.glob("illm-crash-*.txt"))) == 1


def test_ctrl_c_says_how_to_resume(illm, workspace) -> None:
    workspace.fail = KeyboardInterrupt()
    done = illm("run")
    assert done.exit_code == 130
    assert "the same command again resumes" in done.stderr
    assert workspace.closed == 1


def test_crash_log_leaves_expected_errors_alone(tmp_path) -> None:
    with pytest.raises(TrainingError), crash_log(tmp_path):
        raise TrainingError("expected")
    with pytest.raises(BrokenPipeError), crash_log(tmp_path):
        raise BrokenPipeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(CrashError) as crash, crash_log(tmp_path):
        raise ValueError("not expected")
    assert crash.value.path.parent == tmp_path
    assert isinstance(crash.value.__cause__, ValueError)


def test_an_unknown_key_names_the_nearest(illm, workspace) -> None:
    done = illm("registry", "list", "--set", "training.sead=1")
    assert done.exit_code == 2
    assert "unknown config key 'training.sead', did you mean 'seed'?" in done.stderr


def test_a_missing_recipe_and_a_missing_workspace_say_what_to_do(illm, workspace) -> None:
    assert illm("run", "-c", "nowhere.yaml").exit_code == 2
    workspace.missing = True
    done = illm("run")
    assert done.exit_code == 2
    assert done.stderr == "error: illm: expected a workspace, found none: make one with `illm init`\n"


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("a=[1", "override 'a=[1':1: not valid YAML"),
        ("suites={old: [general], new: [general]}", "found general twice"),
        ("suites.old=[corrections]", "rename yours"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_a_config_error(override: str, found: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(found)):
        load_config(None, [override])


def test_a_recipe_that_is_not_utf8_is_a_config_error(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(b"base: caf\xe9\n")
    with pytest.raises(ConfigError, match="expected YAML in UTF-8"):
        load_config(recipe)
