from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from incremental_llm.cli import health
from incremental_llm.cli.commands import app

HEAVY = ("torch", "transformers", "trl", "peft", "sqlalchemy", "pydantic", "rich", "numpy", "yaml")


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from incremental_llm.cli import main\n"
        "sys.argv = ['illm', '--help']\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    shown = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    expected = (
        "init feedback serve-ingest api-key dataset review run nightly patch consolidate rebuild "
        "evaluate registry check-adapter export report chat doctor"
    )
    assert shown == expected.split()
    assert "..." not in done.stdout.split("Commands:")[1]


@pytest.mark.parametrize(
    "noun",
    [
        "",
        "feedback",
        "dataset",
        "registry",
        "registry promote",
        "run",
        "patch",
        "rebuild",
        "consolidate",
        "feedback erase",
        "check-adapter",
        "export",
        "doctor",
        "chat",
        "init",
    ],
)
def test_every_help_says_what_the_command_does(illm, noun: str) -> None:
    done = illm(*noun.split(), "--help")
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")


def test_no_command_shows_the_help(illm) -> None:
    assert "Commands:" in illm().output


def test_version(illm, monkeypatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.2.3")
    assert illm("--version").output == "incremental_llm 1.2.3\n"
    monkeypatch.setattr(metadata, "version", lambda name: metadata.distribution("no-such-thing-here").version)
    assert "not installed" in illm("--version").output


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "feedback import a.jsonl",
        "feedback status",
        "dataset show -n 0",
        "run",
        "run --dry-run",
        "nightly",
        "patch k1",
        "evaluate",
        "registry list",
        "registry show",
        "registry diff 0",
        "registry quarantine",
        "registry verify",
        "registry promote 0 --dry-run",
        "registry promote 0 --yes",
        "registry rollback 0 -r bad --dry-run",
        "registry rollback 0 -r bad --yes",
        "export production out",
        "export production out --form merged",
        "report",
        "chat -m Hi",
        "doctor",
    ],
)
def test_every_command_ends_with_what_to_do_next(illm, workspace, monkeypatch, command: str) -> None:
    monkeypatch.setattr(health, "examine", lambda config, overrides: iter(()))
    Path("a.jsonl").write_text("{}\n", encoding="utf-8")
    done = illm(*command.split())
    assert done.exit_code == 0
    assert any(line.startswith("next: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("wrong", ["registri", "run --fast", "export production", "registry promote"])
def test_wrong_usage_is_exit_code_2(illm, wrong: str) -> None:
    done = illm(*wrong.split())
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


def test_the_app_never_prints_a_rich_traceback() -> None:
    assert app.pretty_exceptions_enable is False
