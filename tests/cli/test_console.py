from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import pytest

from incremental_llm.chat import Message
from incremental_llm.cli import console
from incremental_llm.cli.console import command, confirmed, next_steps, plain, result, table
from incremental_llm.errors import InputError


class Reason(Enum):
    duplicate = "duplicate"


@pytest.mark.parametrize("name", ["u1", "O'Hara", "a b", "$(rm -rf ~)", "`x`", "zilp ünï", ""])
def test_a_command_holds_any_name_as_one_word(name: str) -> None:
    said = command("illm", "feedback", "erase", "--user", name, "--yes")
    assert shlex.split(said) == ["illm", "feedback", "erase", "--user", name, "--yes"]
    assert ("'" in said) == (name != "u1")


def test_plain_turns_records_into_json_types() -> None:
    value = {
        Reason.duplicate: (Message(role="user", content="Hi"),),
        "path": Path("a/b"),
        "time": datetime(2026, 11, 1, tzinfo=UTC),
        "set": frozenset({3, 1, 2}),
        "nan": float("nan"),
        "inf": float("inf"),
        "yes": True,
    }
    assert plain(value) == {
        "duplicate": [{"role": "user", "content": "Hi"}],
        "path": "a/b",
        "time": "2026-11-01T00:00:00+00:00",
        "set": [1, 2, 3],
        "nan": None,
        "inf": None,
        "yes": True,
    }


def test_plain_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="expected a value that JSON can hold, found object"):
        plain(object())


def test_result_is_one_json_value(capsys) -> None:
    result({"a": [1, "ü"]})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"a": [1, "ü"]}
    assert shown.err == ""


def test_table_shows_every_cell_without_markup(capsys) -> None:
    table("numbers", [{"name": "[bold]a[/bold]", "n": 1.23456, "ok": True}, {"name": "b", "n": 2, "ok": False}])
    shown = capsys.readouterr().out
    assert "[bold]a[/bold]" in shown
    assert "1.235" in shown
    assert not any(line.endswith(" ") for line in shown.splitlines())
    assert "yes" in shown
    table("nothing", [], empty="no rows")
    assert capsys.readouterr().out == "nothing: no rows\n"


def test_next_steps_go_to_stderr(capsys) -> None:
    next_steps("illm run", "illm report")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "next: illm run\n      illm report\n")


def test_confirmed_asks_only_on_a_terminal(monkeypatch, capsys) -> None:
    assert confirmed("move it", yes=True, dry_run=False)
    assert not confirmed("move it", yes=True, dry_run=True)
    assert "would move it; nothing was changed (dry run)" in capsys.readouterr().out
    monkeypatch.setattr(console.sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(InputError, match="expected --yes, found none"):
        confirmed("move it", yes=False, dry_run=False)
    monkeypatch.setattr(console.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console.typer, "confirm", lambda question, err: err and question == "Move it?")
    assert confirmed("move it", yes=False, dry_run=False)
    monkeypatch.setattr(console.typer, "confirm", lambda question, err: False)
    assert not confirmed("move it", yes=False, dry_run=False)
    assert "nothing was changed" in capsys.readouterr().err
    assert not confirmed("move it", yes=True, dry_run=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"would": "move it"}
