"""From an event or a person to adapters and versions, and back: by the indices of two nights of the tiny model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from incremental_llm.cli import trace as cli_trace
from incremental_llm.cli.feedback import app
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError
from incremental_llm.trace import trace_event, trace_example, trace_increment, trace_person
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]


@pytest.fixture
def workspace(tmp_path: Path, tiny_config: Config) -> Iterator[Workspace]:
    with Workspace.create(tiny_config()) as opened:
        yield opened


def test_both_ways(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"type": "thumb", "id": "late", "time": "2026-11-01T12:00:00Z", "interaction": "gone", "user": "u9"}
    workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), late | {"value": 1}]))
    outcome = workspace.run()
    assert outcome.decision == "promoted", outcome.reasons
    registry, store = workspace.registry, workspace.store

    event = trace_event(registry, store, "n1-k3")
    assert event.event["content"] == GOOD and event.held_by == (1,)
    assert [(s.version, s.outcome) for s in event.sightings] == [(1, "used")]
    assert [place.id for place in trace_event(registry, store, "n1-i3").about] == ["n1-k3"]
    waiting = trace_event(registry, store, "late")
    assert (waiting.seq, waiting.held_by, waiting.event["interaction"]) == (None, (), "gone")

    person = trace_person(registry, store, "u0")
    assert {place.id for place in person.events} >= {"n1-i0", "n1-i3"} and person.held_by == (1,)
    assert sum(one.events for one in person.adapters) == len(person.events)

    increment = trace_increment(registry, "production")
    assert increment.adapter == registry.head().stack.adapters[-1]
    assert increment.outcomes["used"] == sum(s.outcome == "used" for s in increment.sightings) > 10

    example = outcome.dataset.sft[0]
    traced = trace_example(registry, example.id[:12])
    assert traced.id == example.id and traced.made_by[1]["sources"] == list(example.sources)

    workspace.rollback(to=0, reason="complaints")
    assert trace_person(registry, store, "u0").held_by == (1,)  # version 2 has the base's stack again
    for unknown in (
        lambda: trace_event(registry, store, "nobody"),
        lambda: trace_person(registry, store, "nobody"),
        lambda: trace_increment(registry, 2),
        lambda: trace_example(registry, "0" * 64),
        lambda: trace_example(registry, "ab"),
    ):
        with pytest.raises(InputError, match="trace: expected"):
            unknown()

    monkeypatch.setattr(cli_trace, "opened", lambda *given: contextlib.nullcontext(workspace))
    shown = {
        kind: CliRunner().invoke(app, ["trace", kind, name])
        for kind, name in (("event", "n1-i3"), ("user", "u0"), ("increment", "1"), ("example", example.id))
    }
    assert {kind: done.exit_code for kind, done in shown.items()} == dict.fromkeys(shown, 0)
    assert "held by versions: 1" in shown["event"].output and "n1-k3" in shown["event"].output
    assert "adapters trained on them" in shown["user"].output
    assert "outcomes" in shown["increment"].output
    assert GOOD in shown["example"].output
    found = json.loads(CliRunner().invoke(app, ["trace", "user", "u0", "--json"]).stdout)
    assert found["held_by"] == [1] and len(found["events"]) == len(person.events)
