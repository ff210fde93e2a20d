"""The server as a process: what it binds to, how it ends, and that SIGKILL loses and doubles nothing."""

from __future__ import annotations

import importlib.util
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.api import server
from incremental_llm.feedback.api.server import check_address, serve
from incremental_llm.feedback.api.settings import ApiSettings

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    check_address(host, allow_remote=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_addresses_do(host: str) -> None:
    with pytest.raises(InputError, match=r"expected a loopback address.*--allow-remote"):
        check_address(host, allow_remote=False)
    check_address(host, allow_remote=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def test_nothing_is_bound_where_it_may_not_be(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_bound", lambda host, port: pytest.fail("bound"))
    with pytest.raises(InputError, match="--allow-remote"):
        serve(store, ApiSettings(), host="0.0.0.0")


def test_a_port_that_is_taken_is_said(store: FeedbackStore) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: Address already in use. Give another --port"):
            serve(store, ApiSettings(), port=port)


def test_a_missing_extra_is_named(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install 'incremental_llm\[serve\]'"):
        serve(store, ApiSettings())


@pytest.fixture(scope="module")
def ingest() -> Any:
    """The benchmark, which is in no package and imports its neighbour."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_ingest", BENCHMARKS / "ingest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("by", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)])
def test_a_server_that_ends_under_load_loses_and_doubles_nothing(
    ingest: Any, tmp_path: Path, by: signal.Signals, code: int
) -> None:
    running = ingest.Server(tmp_path)
    running.start()
    first = running.process
    acknowledged = ingest.kill_again_and_again(running, rate=50, kills=2, by=by)
    assert len(acknowledged) > 2
    assert first.returncode == code
    running.end(signal.SIGTERM)
    assert ingest.lost_and_doubled(running, acknowledged) == (0, 0)
    said = "ended; all that was answered with 202 is stored"
    assert running.log.read_text().count(said) == (1 if by == signal.SIGKILL else 3)


def test_what_the_log_lacks_and_what_it_holds_twice_is_counted(ingest: Any, tmp_path: Path) -> None:
    running = ingest.Server(tmp_path)
    events = []
    for name, number in (("a", 1), ("b", 2), ("c", 2)):
        _, body = ingest._request(number, None)
        events.append({**body, "type": "interaction", "id": name, "time": "2026-11-01T12:00:00Z"})
    with FeedbackStore(running.url) as store:
        store.append(map(parse_event, events))
    assert ingest.lost_and_doubled(running, {1: "a", 3: "d"}) == (1, 1)
