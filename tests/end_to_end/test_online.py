"""Online micro-updates on a workspace: the next increment's own events at once, measured, and nothing promoted."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from incremental_llm.adapters.lora import read_adapter
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.training import online
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]
SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "online.py"


def seen_by_updates(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The completions that each update is given, from here on."""
    given: list[list[str]] = []
    update = online.OnlineTrainer.update

    def watched(self: Any, examples: Any, rehearse: Any = None) -> Any:
        given.append([text for example in examples for text in example.texts])
        return update(self, examples, rehearse)

    monkeypatch.setattr(online.OnlineTrainer, "update", watched)
    return given


def test_every_batch_is_learnt_at_once_and_nothing_is_promoted(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = seen_by_updates(monkeypatch)
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        done = workspace.online(tmp_path / "out", batch=4, steps=4, marks=[9])
        assert [(b.events, b.examples) for b in done.batches] == [(8, 8), (8, 8), (8, 8), (4, 4)]
        assert len(given) == 4
        assert [b.replayed > 0 for b in done.batches] == [False, True, True, True]
        assert all(b.steps and b.tokens and b.seconds > 0 and set(b.losses) == {"dpo", "sft"} for b in done.batches)
        assert done.batches[-1].losses["sft"] < done.batches[0].losses["sft"]
        assert (done.version, set(done.after.suites)) == (0, {"tiny"})
        assert read_adapter(done.adapter).modules
        assert workspace.registry.head().version == 0 and len(workspace.registry.list()) == 1
        assert workspace.registry.attempts() == () and not workspace.registry.verify()
        told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
        assert told["seconds"] == pytest.approx(done.seconds) and len(told["batches"]) == 4
        assert set(told["scores"]) == {"production", "after", "after event 9"}
        assert done.between[9].stack_digest not in {done.after.stack_digest, done.production.stack_digest}
        with pytest.raises(InputError, match="out exists"):
            workspace.online(tmp_path / "out")
        assert workspace.run().version == 1  # the same events are the next increment's all the same
        with pytest.raises(NothingToTrainError, match="no new feedback"):
            workspace.online(tmp_path / "again")


def test_a_batch_knows_what_came_before_it_and_nothing_else(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = seen_by_updates(monkeypatch)
    config = tiny_config()
    config = config.model_copy(
        update={"compile": config.compile.model_copy(update={"policy_reviewers": frozenset({"r0"})})}
    )
    first, again = night(1, GOOD, BAD)[:2], night(1, "the forged one", BAD)[:2]
    again = [e | {"id": f"x-{e['id']}", "conversation": "x"} if "conversation" in e else e for e in again]
    again = [e | {"id": f"x-{e['id']}", "interaction": f"x-{first[0]['id']}"} if "content" in e else e for e in again]
    change = {"type": "policy_change", "id": "p1", "time": "2026-11-02T12:00:00Z", "reviewer": "r0"}
    change |= {"supersedes": [first[1]["id"]], "note": "changed"}
    last = [e | {"id": f"y-{e['id']}"} for e in again]
    last = [e | {"interaction": f"y-{e['interaction']}"} if "interaction" in e else e for e in last]
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "log.jsonl", [*first, *again, change, *last]))
        done = workspace.online(tmp_path / "out", batch=1, steps=2)
    assert [b.examples for b in done.batches] == [2, 0, 0, 2]  # accepted, contradicts it, ends it, is true from then on
    assert given[0][0] == GOOD and given[-1][0] == "the forged one"
    assert done.batches[-1].replayed == 0  # what the policy change ended is rehearsed no more
    assert done.batches[1].note and not done.batches[1].steps


def test_too_few_of_a_kind_wait_for_the_next(tmp_path: Path, tiny_config: Config) -> None:
    phases = [{"objective": "kto", "learning_rate": 1e-3, "epochs": 1, "minimum": 3}]
    served = [event for event in night(1, GOOD, BAD) if event["type"] == "interaction"][:5]
    thumbs = [
        {"type": "thumb", "id": f"t{n}", "time": e["time"], "interaction": e["id"], "user": f"v{n}", "value": 1}
        for n, e in enumerate(served)
    ]
    with Workspace.create(tiny_config(phases=phases)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "log.jsonl", [*served, *thumbs]))
        done = workspace.online(tmp_path / "out", batch=1, steps=2)
    assert [bool(b.steps) for b in done.batches[:3]] == [False, False, True]
    assert "expected a phase with its `minimum`" in done.batches[0].note


def test_a_thumb_beside_a_correction_waits_for_the_next(tmp_path: Path, tiny_config: Config) -> None:
    phases = [
        {"objective": "kto", "learning_rate": 1e-3, "epochs": 1, "minimum": 2},
        {"objective": "sft", "learning_rate": 1e-3, "epochs": 1},
    ]
    log = night(1, GOOD, BAD)[:3]  # a correction, and one more reply, which is thumbed up
    thumb = {"type": "thumb", "id": "t1", "time": log[-1]["time"], "user": "v1", "value": 1}
    thumb |= {"interaction": log[-1]["id"]}
    with Workspace.create(tiny_config(phases=phases)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "log.jsonl", [*log, thumb]))
        done = workspace.online(tmp_path / "out", batch=2, steps=2)
    (batch,) = done.batches
    assert batch.steps and batch.note == "1 examples were too few of their kind and wait"
    assert "1 examples of the last batches were too few to be trained on" in done.notes


def test_the_recipe_prints_seconds_and_scores(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("online_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = tiny_config()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"compile"})), encoding="utf-8")
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
    out = tmp_path / "out"
    command = ["online.py", "--config", str(recipe), "--batch", "14", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    assert script.main() == 0
    said = capsys.readouterr().out
    assert "batch 1: 28 examples, " in said and "2 steps" in said
    assert "production v0" in said and "nothing was promoted" in said
    assert script.main() == 2
    assert f"error: {out} exists" in capsys.readouterr().err
