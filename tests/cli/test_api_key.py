"""illm api-key and illm serve-ingest, on a database of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from incremental_llm.cli import app
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.api import server
from incremental_llm.feedback.api.keys import KeyTable


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'feedback.db'}"


@pytest.fixture
def illm(database: str) -> Any:
    return lambda *words: CliRunner().invoke(app, [*words, "--set", f"database={database}"])


def authenticates(database: str, text: str) -> bool:
    with FeedbackStore(database) as store:
        return KeyTable(store).credentials().authenticate(f"Bearer {text}") is not None


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(illm: Any, database: str) -> None:
    made = illm("api-key", "create", "--scope", "ingest", "--name", "shop")
    text = made.stdout.strip()
    assert made.exit_code == 0
    assert authenticates(database, text)
    assert "cannot be shown again" in made.stderr
    name = text.split("_")[1]
    listed = illm("api-key", "list")
    assert name in listed.stdout
    assert "ingest" in listed.stdout
    assert text.split("_", 2)[2] not in listed.output
    revoked = illm("api-key", "revoke", name)
    assert f"{name} of shop is revoked since" in revoked.stdout
    assert not authenticates(database, text)
    assert illm("api-key", "revoke", "nobody").exit_code == 2


def test_keys_of_one_name_are_said_to_share(illm: Any) -> None:
    first = json.loads(illm("api-key", "create", "-s", "ingest", "-s", "review", "-n", "shop", "--json").stdout)
    assert first["scopes"] == ["ingest", "review"]
    second = illm("api-key", "create", "-s", "ingest", "-n", "shop")
    assert f"{first['id']} of the same name may give feedback on what it logs" in second.stderr


def test_a_wrong_scope_makes_no_key(illm: Any) -> None:
    wrong = illm("api-key", "create", "--scope", "write", "--name", "shop")
    assert wrong.exit_code == 2
    assert "expected scopes out of ingest, review, admin, found write" in wrong.stderr
    assert json.loads(illm("api-key", "list", "--json").stdout) == {"keys": []}


def test_ending_old_tokens_is_asked_for(illm: Any) -> None:
    assert "made before are valid" in illm("api-key", "rotate-tokens").stdout
    asked = illm("api-key", "rotate-tokens", "--end-old")
    assert asked.exit_code == 2
    assert "expected --yes" in asked.stderr
    assert "made before are refused" in illm("api-key", "rotate-tokens", "--end-old", "--yes").stdout


def test_serving_takes_the_recipes_database_and_the_options(
    illm: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def serve(store: FeedbackStore, settings: Any, *, ready: Any, review: Any, **where: Any) -> None:
        asked.update(url=store.url, rate=settings.user_rate, lease=review.settings.lease_seconds, **where)
        ready("http://127.0.0.1:9")

    monkeypatch.setattr(server, "serve", serve)
    done = illm("serve-ingest", "--port", "9", "--user-rate", "5")
    assert done.exit_code == 0
    assert "listening on http://127.0.0.1:9, documented at http://127.0.0.1:9/docs" in done.stderr
    assert "next: illm api-key create" in done.stderr
    where = {"host": "127.0.0.1", "port": 9, "allow_remote": False}
    assert asked == {"url": database, "rate": 5.0, "lease": 900.0, **where}


def test_serving_elsewhere_is_refused_without_the_option(illm: Any) -> None:
    refused = illm("serve-ingest", "--host", "0.0.0.0")
    assert refused.exit_code == 2
    assert "--allow-remote" in refused.stderr


@pytest.mark.parametrize("command", [("serve-ingest",), ("api-key", "list")])
def test_without_a_workspace_or_a_database_there_is_nothing_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, list(command))
    assert done.exit_code == 2
    assert "Make one: illm init" in done.stderr
    assert not list(tmp_path.iterdir())
