"""The API on a database of its own, with a clock that stands still and a key of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.api.app import create_app
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.settings import ApiSettings

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


@dataclass
class Api:
    """One running application; `keys` maps a name such as `shop` to the text of its key."""

    store: FeedbackStore
    client: TestClient
    table: KeyTable
    keys: dict[str, str]
    seconds: list[float] = field(default_factory=lambda: [0.0])
    now: list[datetime] = field(default_factory=lambda: [NOW])

    def post(self, path: str, body: Any, key: str | None = "shop", **headers: str) -> Any:
        """The response to a body, which is JSON unless it is bytes or an iterator of them."""
        content = json.dumps(body) if isinstance(body, dict | list) else body
        sent = {"Content-Type": "application/json", **{n.replace("_", "-"): v for n, v in headers.items()}}
        if key is not None:
            sent["Authorization"] = f"Bearer {self.keys.get(key, key)}"
        return self.client.post(path, content=content, headers=sent)

    def log(self, key: str = "shop", **fields: Any) -> tuple[str, str]:
        """(id, reply token) of a new interaction."""
        answer = self.post("/v1/interactions", interaction(**fields), key)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"], answer.json()["reply_token"]

    def stored(self) -> list[str]:
        """Ids in the log, in order."""
        return [stored.event.id for stored in self.store.read()]


def interaction(**fields: Any) -> dict[str, Any]:
    said = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": "How long?"}]}
    return {**said, "reply": "30 days.", "model": "production@1", **fields}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A database with the keys, made once: every transaction waits for the disk."""
    path = tmp_path_factory.mktemp("made") / "feedback.db"
    scopes = {"shop": ["ingest"], "other": ["ingest"], "reviewer": ["review"], "operator": ["admin"]}
    with FeedbackStore(f"sqlite:///{path}") as store:
        return path, {name: KeyTable(store).create(name, wanted)[1] for name, wanted in scopes.items()}


@pytest.fixture
def start(tmp_path: Path, made: tuple[Path, dict[str, str]]) -> Iterator[Callable[..., Api]]:
    """Starts applications, with any of the settings changed."""
    path, keys = made
    shutil.copy(path, tmp_path)
    with ExitStack() as stack:

        def begin(**changed: Any) -> Api:
            store = stack.enter_context(FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}"))
            seconds, now = [0.0], [NOW]
            settings = ApiSettings(**{"refresh_seconds": 0, **changed})
            app = create_app(store, settings, clock=lambda: seconds[0], now=lambda: now[0])
            client = stack.enter_context(TestClient(app))
            return Api(store, client, KeyTable(store), dict(keys), seconds, now)

        yield begin


@pytest.fixture
def api(start: Callable[..., Api]) -> Api:
    return start()


@pytest.fixture
def make_interaction() -> Callable[..., dict[str, Any]]:
    return interaction
