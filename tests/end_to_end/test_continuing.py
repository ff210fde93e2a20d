"""A killed run goes on with its own batch; whatever decides a run and has changed begins another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.errors import NothingToTrainError, PreconditionFailed, TrainingError
from incremental_llm.training.increment import train_increment
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]


class Killed(BaseException):
    pass


def dying(error: BaseException) -> Callable[..., Any]:
    def train(**_arguments: Any) -> Any:
        raise error

    return train


def batch_of(workspace: Workspace) -> tuple[int, str]:
    """Size of the batch that training is given, and the folder it works in."""
    seen: list[tuple[int, str]] = []

    def look(**arguments: Any) -> Any:
        seen.append((len({s for e in arguments["examples"] for s in e.sources}), arguments["out"].parent.name))
        raise Killed

    with pytest.raises(Killed):
        workspace.run(train=look)
    return seen[0]


def test_a_killed_run_goes_on_with_its_batch_whatever_was_imported_since(tmp_path: Path, tiny_config: Config) -> None:
    messages: list[str] = []
    with Workspace.create(tiny_config()) as workspace:
        first, second = night(1, GOOD, BAD), night(2, BAD, GOOD)
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", first))
        with pytest.raises(Killed):
            workspace.run(train=dying(Killed()))
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", second))
        said = "continuing an interrupted run with its 28 events; 28 newer ones wait for the next run"
        assert workspace.plan().lines[0] == said
        assert workspace.compile_preview().account.keys() == {event["id"] for event in first}
        outcome = workspace.run(progress=lambda text, *_: messages.append(text))
        assert (outcome.decision, outcome.version) == ("promoted", 1), outcome.reasons
        assert workspace.registry.head().cursor == len(first)
        assert outcome.dataset.account.keys() == {event["id"] for event in first}
        assert said in messages
        assert batch_of(workspace)[0] > len(second)  # the second night, and what is replayed


@pytest.mark.parametrize(
    ("error", "batch"),
    [
        (TrainingError("the loss is not finite"), 56),
        (NothingToTrainError("no phase has enough examples"), 56),
        (RuntimeError("out of memory"), 56),
        (OSError(28, "No space left on device"), 28),  # the machine's fault: what was trained is worth going on with
    ],
)
def test_a_batch_that_training_breaks_on_is_let_go(
    error: Exception, batch: int, tmp_path: Path, tiny_config: Config
) -> None:
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with pytest.raises(type(error)):
            workspace.run(train=dying(error))
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, GOOD, BAD)))
        assert batch_of(workspace)[0] == batch


def test_a_batch_that_became_no_example_is_not_held_on_to(tmp_path: Path, tiny_config: Config) -> None:
    asked = [event for event in night(1, GOOD, BAD) if event["type"] == "interaction"]
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", asked))
        with pytest.raises(NothingToTrainError, match="no_feedback"):
            workspace.run()
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, GOOD, BAD)))
        assert batch_of(workspace)[0] == 28


@pytest.mark.parametrize("change", ["suite", "anchor", "recipe"])
def test_another_suite_anchor_or_recipe_is_another_run(change: str, tmp_path: Path, tiny_config: Config) -> None:
    prompts = tmp_path / "everyday.jsonl"
    line = '{"id": "a%d", "messages": [{"role": "user", "content": "%s"}]}\n'
    prompts.write_text(line % (1, "What is a river?"), encoding="utf-8")
    anchor = {"weight": 0.1, "rows_per_step": 1, "max_new_tokens": 4, "prompts": str(prompts)}
    with Workspace.create(tiny_config(anchor=anchor)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        begun = batch_of(workspace)
        assert batch_of(workspace) == begun
        config = workspace.config
        if change == "suite":
            head = config.suites.folder / "tiny" / "suite.yaml"
            head.write_text(head.read_text(encoding="utf-8").replace("version: 1", "version: 2"), encoding="utf-8")
            items = head.with_name("items.jsonl")
            items.write_text(items.read_text(encoding="utf-8").replace("Count to 3", "Tell me 3"), encoding="utf-8")
        elif change == "anchor":
            prompts.write_text(line % (1, "What is a hill?"), encoding="utf-8")
        else:
            workspace.config = tiny_config(anchor=anchor, seed=5)
        assert batch_of(workspace)[1] != begun[1]


def test_the_nights_go_on_where_production_was_moved_back(tmp_path: Path, tiny_config: Config) -> None:
    """The run that made v2 has ended, although production, recipe and events are those that it began with."""
    config = tiny_config()
    lenient = config.gate.model_copy(update={"max_correction_losses": 1.0, "max_negative_flips": 1.0})
    with Workspace.create(config.model_copy(update={"gate": lenient})) as workspace:
        for number, texts in ((1, (GOOD, BAD)), (2, (BAD, GOOD))):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, *texts)))
            assert workspace.run().decision == "promoted"
        workspace.promote(1, reason="a test")
        with pytest.raises(NothingToTrainError, match=r"28 events have made v2 from v1 .*promote 2"):
            workspace.run(train=dying(Killed()))
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, GOOD, BAD)))
        assert "continuing" not in workspace.plan().lines[0]
        assert batch_of(workspace)[0] > 28
        with pytest.raises(Killed):
            workspace.run(train=dying(Killed()))
        assert workspace.plan().lines[0] == "continuing an interrupted run with its 56 events"


def test_a_refusal_against_a_version_that_serves_no_more_is_no_try(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        workspace.run()
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))

        def moving(**arguments: Any) -> Any:
            with Workspace.open(config) as other:
                other.promote(0, reason="meanwhile")
            return train_increment(**arguments)

        with pytest.raises(PreconditionFailed, match="production"):
            workspace.run(train=moving)
        assert workspace.registry.attempts() == () and workspace.registry.quarantined() == frozenset()
