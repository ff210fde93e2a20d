"""Each policy of replay that is not the default, through two nights of the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig, parse_config
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.pipeline import RunOutcome
from incremental_llm.replay import ReplayBuffer
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]
TRUE, FALSE = (GOOD, BAD), (BAD, GOOD)
FORGETFUL = [{"objective": "sft", "learning_rate": 2e-2, "epochs": 20}]  # learns a night by heart, and loses the last
SAMPLED = {"temperature": 1.5, "prompt_tokens": 200}  # so that the tiny model's questions end


def recipe(config: RunConfig, replay: dict[str, Any]) -> RunConfig:
    """The tiny recipe with another replay, and a gate that lets any night pass: what is replayed is the point here."""
    tree = config.model_dump(mode="json")
    tree["replay"] = {"ratio": 0.05, "minimum": 4, "answer_tokens": 24} | replay
    tree["gate"] |= {"max_correction_losses": 1.0, "max_negative_flips": 1.0, "margin": 0.9}
    return parse_config(tree, source="the test")


def nights(tmp_path: Path, workspace: Workspace, *texts: tuple[str, str], topic: bool = True) -> list[RunOutcome]:
    """What became of these nights; the interactions of every third question have no topic."""
    outcomes = []
    for number, (chosen, rejected) in enumerate(texts, start=len(workspace.registry.list())):
        events = night(number, chosen, rejected)
        for index, event in enumerate(e for e in events if e["type"] == "interaction"):
            event["metadata"] = {"topic": ("pets", "farm")[index % 2]} if topic and index % 3 else {}
        workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", events))
        outcomes.append(workspace.run())
        assert outcomes[-1].decision == "promoted", outcomes[-1].reasons
    return outcomes


def buffer_of(workspace: Workspace) -> ReplayBuffer:
    """The buffer that production's snapshot holds."""
    return ReplayBuffer.read(workspace.registry.object_path(str(workspace.registry.head().replay)) / "buffer.json")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model learns what to say but not to end there: here, an answer ends after a reply that it was taught."""

    def ended(self: Measurement, stack: Any, prompts: Any, tokens: int, what: str, doing: str) -> list[str | None]:
        answers = self.answers(stack, prompts, tokens, what)
        return [next((text for text in (GOOD, BAD) if answer.startswith(text)), answer) for answer in answers]

    monkeypatch.setattr(Measurement, "ended_answers", ended)


def replayed(outcome: RunOutcome) -> list[Any]:
    """The replayed examples of a night."""
    return [row.example for row in outcome.mixture.rows if row.origin == "replay"]


@pytest.mark.parametrize(
    ("replay", "said", "measured"),
    [
        ({"policy": "reservoir"}, "", 0),
        ({"policy": "balanced", "balance": "topics"}, "10 of 28 examples have no topic", 0),
        ({"policy": "prioritised"}, "production was measured on 28 of 28 replayable examples, by loss", 28),
        (
            {"policy": "prioritised", "priority": {"by": "flips", "sample": 10}},
            "production was measured on 20 of 28 replayable examples, by flips; of the buffer 0 were right once",
            20,
        ),
        ({"policy": "window", "window": 1}, "", 0),
        ({"policy": "half_life", "half_life": 1}, "", 0),
    ],
    ids=["reservoir", "topics", "loss", "flips", "window", "half_life"],
)
def test_a_policy_runs_from_the_recipe_to_the_snapshot(
    replay: dict[str, Any], said: str, measured: int, tmp_path: Path, tiny_config: Config
) -> None:
    config = recipe(tiny_config(), replay)
    with Workspace.create(config) as workspace:
        first, second = nights(tmp_path, workspace, TRUE, FALSE)
        assert replayed(first) == [] and sum(r.an_epoch for r in second.mixture.realised.values()) == 8  # SFT and pairs
        assert len(replayed(second)) > 8  # others in other epochs
        assert said in "; ".join(second.notes)
        buffer = buffer_of(workspace)
        assert buffer.policy == config.replay.kept_by and buffer.counts()["sft"] == {1: 14, 2: 14}
        assert sum(item.loss is not None or item.right is not None for item in buffer.items) == measured
        assert not workspace.registry.verify()


@pytest.mark.usefixtures("ending")
def test_a_forgotten_answer_is_a_flip_and_is_replayed_first(tmp_path: Path, tiny_config: Config) -> None:
    one_row = {"minimum": 1, "ratio": 0.01, "rotate": False}
    flips = {"policy": "prioritised", "priority": {"by": "flips", "exponent": 9}} | one_row
    config = recipe(tiny_config(phases=FORGETFUL), flips)
    with Workspace.create(config) as workspace:
        _, second, third = nights(tmp_path, workspace, TRUE, FALSE, TRUE)
        learned = {item.example.id for item in second.buffer.of_kind("sft") if item.learned}
        flipped = {item.example.id for item in third.buffer.of_kind("sft") if item.flipped}
        assert len(learned) >= 7 and flipped and flipped <= learned  # the second night taught the opposite
        drawn = {e.id for e in replayed(third) if e.kind == "sft"}
        assert len(drawn & flipped) == 1
        assert any("were right once and are wrong now" in note for note in third.notes)


@pytest.mark.usefixtures("ending")
def test_on_policy_keeps_a_correction_where_production_is_wrong(tmp_path: Path, tiny_config: Config) -> None:
    config = recipe(tiny_config(phases=FORGETFUL), {"answers": "on_policy", "minimum": 2, "rotate": False})
    with Workspace.create(config) as workspace:
        _, second, third = nights(tmp_path, workspace, TRUE, FALSE, TRUE)
        assert any(note.startswith("production's own answers stand in 2 of 2 replayed") for note in second.notes)
        stored = {item.example.prompt: item.example for item in third.buffer.of_kind("sft")}
        for example in replayed(third):
            if example.kind == "sft":  # whatever production says by now
                assert example.completion == stored[example.prompt].texts[0]
                assert example.sources == stored[example.prompt].sources
        assert any("keep the stored one, which it does not give" in note for note in third.notes), third.notes


@pytest.mark.usefixtures("ending")
def test_self_synthesised_keeps_no_text_of_anybody(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(recipe(tiny_config(), {})) as workspace:
        nights(tmp_path, workspace, TRUE)
        assert len(buffer_of(workspace).items) == 28
    config = recipe(tiny_config(), {"policy": "self_synthesised", "synthesis": SAMPLED})
    with Workspace.open(config) as workspace:
        (second,) = nights(tmp_path, workspace, FALSE)
        assert "replayed examples leave the buffer: 28 are feedback, of which the recipe keeps none" in second.notes
        assert any(note.startswith("production wrote 4 rehearsal rows itself") for note in second.notes), second.notes
        rows = replayed(second)
        assert len(rows) == 4 and all((e.kind, e.sources, e.users) == ("sft", (), ()) for e in rows)
        asked = {e.prompt[-1].content for e in second.dataset.examples}
        assert not any(e.prompt[-1].content in asked for e in rows)
        assert buffer_of(workspace).items == ()
        assert "the fox here" not in buffer_of(workspace).to_json()


@pytest.mark.parametrize(
    "replay",
    [
        {"policy": "prioritised"},
        {"answers": "on_policy"},
        {"policy": "self_synthesised", "synthesis": SAMPLED},
    ],
    ids=["loss", "on_policy", "self_synthesised"],
)
def test_a_killed_run_goes_on_with_what_production_said(
    replay: dict[str, Any], tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    trained: list[Sequence[Any]] = []

    def dying(**arguments: Any) -> Any:
        trained.append(arguments["examples"])
        raise Killed

    with Workspace.create(recipe(tiny_config(), replay)) as workspace:
        nights(tmp_path, workspace, TRUE)
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, *FALSE)))
        assert any("known when it runs" in line for line in workspace.plan().lines)
        with pytest.raises(Killed):
            workspace.run(train=dying)
        with monkeypatch.context() as patch:
            for name in ("ended_answers", "mean_logps", "turns"):
                patch.setattr(Measurement, name, None)
            with pytest.raises(Killed):
                workspace.run(train=dying)
    assert trained[0] == trained[1]


def test_expiry_and_tokens_bound_what_the_snapshot_holds(tmp_path: Path, tiny_config: Config) -> None:
    bounds = {"max_increments": 1, "max_days": 1.5, "capacity_tokens": {"sft": 500}}
    late = {"type": "ping", "id": "late", "time": "2999-01-01T00:00:00Z"}  # by a clock that is wrong
    with Workspace.create(recipe(tiny_config(), bounds)) as workspace:
        _, second = nights(tmp_path, workspace, TRUE, FALSE)
        workspace.import_feedback(write_log(tmp_path / "late.jsonl", [late]))
        (third,) = nights(tmp_path, workspace, TRUE)
        assert not any("older" in note for note in second.notes)
        held = [len(outcome.buffer.of_kind("sft")) for outcome in (second, third)]
        gone = [note for note in third.notes if "are older than the recipe keeps them" in note]
        assert len(gone) == 1 and gone[0].startswith("replayed examples leave the buffer: ")
        assert {i.increment for i in third.buffer.items} == {2}
        assert 0 < held[0] < 14  # some of the first night's fourteen fit
