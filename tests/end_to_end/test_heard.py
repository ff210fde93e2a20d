"""Who was heard and who was held out, through a night and the workspace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError
from incremental_llm.feedback.exploration import is_held_out
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

SHARE = 0.2


def quiet(number: int) -> dict[str, Any]:
    head = {"type": "interaction", "id": f"q{number}", "time": "2026-11-01T20:00:00Z", "conversation": f"q{number}"}
    messages = [{"role": "user", "content": f"Is tent {number} dry?"}]
    more = {"messages": messages, "reply": BAD, "model": "production", "metadata": {"topic": "tents"}}
    return head | {"user": "eve"} | more


def test_a_night_holds_out_its_sample_and_says_who_is_silent(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    config = tiny_config()
    config = config.model_copy(update={"compile": config.compile.model_copy(update={"held_out_share": SHARE})})
    events = [*night(1, GOOD, BAD), *(quiet(n) for n in range(60))]
    for event in events[:28:2]:
        event["metadata"] = {"topic": "animals", "serving": {"policy": "production@0", "propensity": 0.5}}
    held = {event["id"] for event in events if is_held_out(event.get("conversation", ""), SHARE)}
    assert 0 < len(held & {f"n1-i{n}" for n in range(14)}) < 14
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        outcome = workspace.run()
        used = {name for example in outcome.dataset.examples for name in example.sources}
        assert used and used.isdisjoint(held)
        assert any("hardly speaks for" in note and "0 of 60 replies judged" in note for note in outcome.notes)
        assert any("pairs and verdicts weigh their inverse propensity" in note for note in outcome.notes)
        heard = json.loads((outcome.folder / "representation.json").read_text(encoding="utf-8"))
        assert (heard["served"], heard["judged"]) == (74, 14)
        found = workspace.representation()
        assert (found.served, found.used) == (74, len(used & {f"n1-i{n}" for n in range(14)}))
        replies = workspace.held_out(tmp_path / "sample.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "sample.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in rows} == held == {reply.id for reply in replies}
    assert all(row["corrections"] == ([GOOD] if row["id"].startswith("n1") else []) for row in rows)


def test_without_a_share_there_is_no_sample(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    with (
        Workspace.create(tiny_config()) as workspace,
        pytest.raises(InputError, match=r"compile.held_out_share: expected a share above 0, such as 0.02, found 0"),
    ):
        workspace.held_out(tmp_path / "sample.jsonl")
    assert not (tmp_path / "sample.jsonl").exists()
