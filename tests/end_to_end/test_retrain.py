"""Full retraining: everything from the base, in the place of all adapters, through the same gate and commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.adapters.lora import read_adapter
from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.artifacts import file_digest
from incremental_llm.claims import LEARNED
from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.registry import versions_holding
from incremental_llm.replay import ReplayBuffer
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]
SECOND = ("we open at nine", "we close at two")


def retraining(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"process": "retrain", **changes})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workspace of `two_nights` lies once the first test has made it."""
    return tmp_path_factory.mktemp("kept") / "illm"


@pytest.fixture
def two_nights(tmp_path: Path, tiny_config: Config, kept: Path) -> RunConfig:
    """A workspace whose production stands on two adapters."""
    config = tiny_config()
    lenient = config.gate.model_copy(update={"max_correction_losses": 0.5})
    config = config.model_copy(update={"gate": lenient})
    if not kept.exists():
        with Workspace.create(config) as workspace:
            for number, said in ((1, (GOOD, BAD)), (2, SECOND)):
                workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, *said)))
                assert workspace.run().version == number
        shutil.copytree(config.workspace, kept)
    else:
        shutil.copytree(kept, config.workspace)
    return config


def test_one_adapter_takes_the_place_of_two_and_nothing_is_worse(two_nights: RunConfig, tiny_model_dir: Path) -> None:
    base = file_digest(tiny_model_dir / "model.safetensors")
    with Workspace.open(retraining(two_nights)) as workspace:
        before = workspace.registry.head()
        below = adapter_paths(before.stack, workspace.registry.objects)
        plan = "\n".join(workspace.plan().lines)
        assert "56 events, all that count, would become" in plan
        assert "the gate wants nothing better and tiny not worse" in plan
        outcome = workspace.run()
        assert (outcome.decision, outcome.version) == ("promoted", 3), outcome.reasons
        assert LEARNED not in outcome.candidate.suites  # nothing is claimed to be better
        assert outcome.candidate.suites["corrections"].n == 28
        assert any(note.startswith("one adapter in the place of 2: nothing has to be better") for note in outcome.notes)
        assert outcome.replay.startswith("Replay: no old rows among")
        head = workspace.registry.head()
        assert len(head.stack.adapters) == 1 and head.cursor == before.cursor == 56
        assert head.note.startswith("retrained: ")
        assert read_adapter(adapter_paths(head.stack, workspace.registry.objects)[0]).modules
        assert adapter_paths(before.stack, workspace.registry.objects) == below  # verified: still what they were
        assert file_digest(tiny_model_dir / "model.safetensors") == base
        kept = workspace.registry.get_json(str(head.corrections))
        assert len({one["event_id"] for one in kept}) == len(kept) == 28
        buffer = ReplayBuffer.read(workspace.registry.object_path(str(head.replay)) / "buffer.json")
        assert set(buffer.counts()["sft"]) == {1, 2}  # each increment keeps its share
        assert not workspace.registry.verify()
        assert {(s.version, s.outcome) for s in workspace.registry.sightings("n1-k0")} >= {(1, "used"), (3, "used")}
        snapshots = workspace.registry.list()
        assert versions_holding(snapshots, before.stack.adapters[:1]) == (1, 2, 3)
        assert versions_holding(snapshots, before.stack.adapters[:1], retrained=[3]) == (1, 2)
        with pytest.raises(NothingToTrainError, match="whose stack has 1 adapter: expected new events, or several"):
            workspace.run()
        assert len(workspace.rollback(to=2, reason="a test").stack.adapters) == 2
        assert workspace.registry.quarantined() == frozenset()  # it brought no event that could be to blame


def test_with_enough_new_feedback_it_has_to_be_better_like_an_increment(two_nights: RunConfig, tmp_path: Path) -> None:
    with Workspace.open(retraining(two_nights)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, "it rains here", "the sun shines")))
        outcome = workspace.run()
        assert (outcome.decision, outcome.version) == ("promoted", 3), outcome.reasons
        own = outcome.candidate.suites[LEARNED]
        assert {item.id for item in own.items} == {f"n3-k{i}" for i in range(14)}
        assert len(workspace.registry.get_json(str(workspace.registry.head().corrections))) == 42
        assert workspace.registry.head().cursor == 84


def test_a_refusal_is_no_try_of_what_production_stands_on(two_nights: RunConfig, tmp_path: Path) -> None:
    strict = two_nights.gate.model_copy(update={"max_correction_losses": 0.0})
    strict_config = retraining(two_nights, gate=strict)
    few = [event for event in night(3, BAD, "no idea at all") if event["id"].endswith(("-i0", "-k0"))]
    more = [event for event in night(4, BAD, "no idea at all") if event["id"].endswith(("-i0", "-k0"))]

    def untrained(**arguments: Any) -> Any:
        """One step at a rate that changes nothing: earlier corrections are as under the base, so some are lost."""
        from incremental_llm.training.increment import train_increment

        phases = tuple(
            phase.model_copy(update={"learning_rate": 1e-12, "max_steps": 1}) for phase in arguments["settings"].phases
        )
        return train_increment(**arguments | {"settings": arguments["settings"].model_copy(update={"phases": phases})})

    with Workspace.open(strict_config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", few))
        first = workspace.run(train=untrained)
        assert (first.decision, first.version) == ("rejected", None), first.reasons
        with pytest.raises(NothingToTrainError, match="training on all 58 events was rejected against production v2"):
            workspace.run(train=untrained)
        workspace.import_feedback(write_log(tmp_path / "n4.jsonl", more))
        second = workspace.run(train=untrained)
        assert second.decision == "quarantined", second.reasons
        assert workspace.registry.quarantined() == {57, 58}  # tried twice; not the 56 that have passed a gate
        assert workspace.registry.head().version == 2


def test_it_obeys_policy_changes_and_what_was_accepted(two_nights: RunConfig, tmp_path: Path) -> None:
    compile_settings = two_nights.compile.model_copy(update={"policy_reviewers": frozenset({"r0"})})
    change = {"type": "policy_change", "id": "p1", "time": "2026-11-05T12:00:00Z", "reviewer": "r0"}
    change |= {"supersedes": ["n1-k0"], "note": "no more"}
    forged = [
        {"type": "interaction", "id": "f-i1", "time": "2026-11-05T13:00:00Z", "conversation": "f", "user": "u9"}
        | {"messages": [{"role": "user", "content": "Is the owl here?"}], "reply": GOOD, "model": "production"},
        *(
            {"type": "correction", "id": f"f-k{n}", "time": "2026-11-05T13:01:00Z", "interaction": "f-i1"}
            | {"reviewer": f"r{n}", "content": BAD}
            for n in (7, 8, 9)  # more reviewers than stood behind the first one
        ),
    ]
    with Workspace.open(retraining(two_nights, compile=compile_settings)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", [change, *forged]))
        account = workspace.compile_preview().account
        assert account["n1-k0"] == "superseded"
        assert account["n1-k1"] == "used"
        assert {account[f"f-k{n}"] for n in (7, 8, 9)} == {"contradicts_accepted"}


def test_a_killed_retraining_continues(two_nights: RunConfig) -> None:
    class Killed(BaseException):
        pass

    def die(**arguments: Any) -> Any:
        raise Killed

    with Workspace.open(retraining(two_nights)) as workspace:
        with pytest.raises(Killed):
            workspace.run(train=die)
        (pinned,) = workspace.config.workspace.glob("runs/v3-*/batch.json")
        pinned_again = pinned.read_bytes()
        # A BaseException is a kill: the batch stays, and the same command goes on with it.
        assert workspace.plan().lines[0] == "continuing an interrupted run with its 56 events"
        assert pinned.read_bytes() == pinned_again
        assert workspace.run().version == 3


def test_suites_that_change_their_role_need_items_for_a_margin(two_nights: RunConfig) -> None:
    roles = two_nights.suites.model_copy(update={"new": ("tiny",), "old": ("other",)})
    from .conftest import copy_suite

    copy_suite(two_nights, "other")
    gate = two_nights.gate.model_copy(update={"margins": {"tiny": 0.05}})
    with (
        Workspace.open(retraining(two_nights, suites=roles, gate=gate)) as workspace,
        pytest.raises(InputError, match="tiny has 12 items"),
    ):
        workspace.run()
