"""What a night must refuse, survive or put on record, on the tiny model; most of it before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from incremental_llm.config import RunConfig
from incremental_llm.errors import (
    BaseModelError,
    ConfigError,
    InputError,
    NothingToTrainError,
    SuiteError,
    WorkspaceBusyError,
)
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.events import parse_event
from incremental_llm.pending import changes_in_effect, compile_pending, policy_changes, read_pending, replayable
from incremental_llm.registry import event_uses
from incremental_llm.replay import ReplayBuffer
from incremental_llm.report import results_json
from incremental_llm.report.history import history
from incremental_llm.training.increment import train_increment
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, copy_suite, night, write_log

Config = Callable[..., RunConfig]


class Reached(Exception):
    """Training would begin now."""


def no_training(**_arguments: Any) -> Any:
    raise Reached


def served(name: str, user: str, reply: str = BAD) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"Where is the {name} now?"}]
    head = {"type": "interaction", "id": name, "time": "2026-11-01T13:00:00Z", "conversation": name, "user": user}
    return head | {"messages": asked, "reply": reply, "model": "production"}


def corrected(name: str, interaction: str, content: str = GOOD) -> dict[str, Any]:
    head = {"type": "correction", "id": name, "time": "2026-11-02T13:00:00Z", "interaction": interaction}
    return head | {"reviewer": "r9", "content": content}


def thumb(user: str, interaction: str, value: int) -> dict[str, Any]:
    head = {"type": "thumb", "id": f"{interaction}-{user}", "time": "2026-11-02T14:00:00Z", "user": user}
    return head | {"interaction": interaction, "value": value}


@pytest.mark.parametrize("reply", [GOOD, ""], ids=["confirmed", "empty"])
def test_a_correction_with_nothing_to_compare_it_to_does_not_stop_the_night(
    reply: str, tmp_path: Path, tiny_config: Config
) -> None:
    with Workspace.create(tiny_config()) as workspace:
        events = [*night(1, GOOD, BAD), served("i1", "alice", reply), corrected("k1", "i1")]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        assert "k1" in {c.event_id for c in workspace.compile_preview().corrections}
        with pytest.raises(Reached):
            workspace.run(train=no_training)


def test_only_those_with_the_right_to_it_change_the_policy(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"boss"})})
    config = config.model_copy(update={"compile": allowed})
    store = FeedbackStore(f"sqlite:///{tmp_path / 'f.db'}")
    head = {"type": "policy_change", "time": "2026-11-01T13:00:00Z", "supersedes": ["k1"]}
    store.append(parse_event(head | {"id": f"by-{who}", "reviewer": who}) for who in ("mallory", "boss", "boss2"))
    assert [c.id for c in policy_changes(store, store.head(), config, ())] == ["by-boss"]
    assert policy_changes(store, store.head(), config, {2}) == ()
    assert policy_changes(store, store.head(), tiny_config(), ()) == ()  # nobody has it unless the recipe says who
    store.close()


def test_what_the_tokenizer_makes_untrainable_is_counted_and_never_accepted(
    tmp_path: Path, tiny_config: Config, tiny_tokenizer: Any
) -> None:
    """Else every later night would be measured on it, and fail."""
    end = tiny_tokenizer.eos_token
    events = [*night(1, GOOD, BAD), served("i-end", "eve"), corrected("k-end", "i-end", f"yes{end} no")]
    events += [served("i-bad", "eve", f"no {end}"), corrected("k-bad", "i-bad")]
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        dataset = workspace.compile_preview()
        assert dataset.account["k-end"] == "special_token"
        assert dataset.drop_counts()["special_token"] == 3
        kept = {c.event_id: c for c in dataset.corrections}
        assert "k-end" not in kept
        assert kept["k-bad"].rejected == ""
        first = workspace.run()
        assert first.decision == "promoted", first.reasons
        assert "1 of 15 corrections cannot be tested again: they correct no reply that may be kept" in first.notes


def test_the_user_who_asked_and_a_row_too_long_to_train_are_on_record(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config(max_length=96)
    with Workspace.create(config) as workspace:
        long = corrected("k-long", "i-long", " ".join(["the shop answers: yes"] * 20))
        events = [*night(1, GOOD, BAD), served("i-old", "alice"), served("i-long", "bob"), long]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", events))
        first = workspace.run()
        assert first.decision == "promoted", first.reasons
        (seen,) = workspace.registry.sightings("k-long")
        assert seen.outcome == "too_many_tokens"
        assert workspace.registry.adapters_that_saw("alice") == ()
        assert workspace.registry.adapters_that_saw("bob") == ()
        data = history(workspace.registry, config.workspace, title="t", seed=0)
        assert results_json(data)["against_base"]["tiny"]["n"] == 12

        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", [*night(2, BAD, GOOD), corrected("k-old", "i-old")]))
        workspace.run()
        (adapter,) = workspace.registry.adapters_that_saw("alice")
        assert adapter.events == 1

        dropped = config.suites.model_copy(update={"old": ("tiny2",)})
        copy_suite(config, "tiny2")
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", [served("i3", "eve"), corrected("k3", "i3")]))
        workspace.config = config.model_copy(update={"suites": dropped})
        for attempt in (workspace.plan, lambda: workspace.run(train=no_training)):
            with pytest.raises(InputError, match="was judged on tiny, which this recipe does not name"):
                attempt()

    moved = config.model_copy(update={"database": f"sqlite:///{tmp_path / 'other.db'}"})
    with Workspace.open(moved) as workspace:
        workspace.import_feedback(tmp_path / "n2.jsonl")
        workspace.import_feedback(write_log(tmp_path / "n4.jsonl", night(3, GOOD, BAD)))
        with pytest.raises(InputError, match="expected the log that version 1 was made from"):
            workspace.run(train=no_training)


def test_an_empty_registry_of_a_killed_init_is_no_workspace(tiny_config: Config) -> None:
    config = tiny_config()
    config.workspace.mkdir()
    (config.workspace / "registry.db").touch()
    with Workspace.create(config) as workspace:
        assert workspace.registry.head().version == 0


def test_a_refused_line_is_shown_once(tmp_path: Path, tiny_config: Config) -> None:
    log = write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD))
    log.write_text("no JSON\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    with Workspace.create(tiny_config()) as workspace:
        for _ in range(2):
            assert len(workspace.import_feedback(log).refused) == 1
        (line,) = workspace._refused_lines([])
        assert line.startswith(f"{tmp_path.name}/n1.jsonl line 1: expected JSON")


def test_what_ends_a_suites_truth_is_part_of_its_version(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.evaluate()
        head = config.suites.folder / "tiny" / "suite.yaml"
        head.write_text(head.read_text(encoding="utf-8") + "superseded_by: [c1]\n", encoding="utf-8")
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with pytest.raises(SuiteError, match="version"):
            workspace.run(train=no_training)


@pytest.mark.parametrize("role", ["new", "watch"])
def test_a_superseded_suite_in_another_role_is_refused_before_training(
    role: str, tmp_path: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    copy_suite(config, "tiny2")
    head = config.suites.folder / "tiny" / "suite.yaml"
    head.write_text(head.read_text(encoding="utf-8") + "superseded_by: [c1]\n", encoding="utf-8")
    roles = config.suites.model_copy(update={"old": ("tiny2",), role: ("tiny",)})
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"r0"})})
    change = {"type": "policy_change", "id": "c1", "time": "2026-11-01T14:00:00Z", "reviewer": "r0", "supersedes": []}
    with Workspace.create(config.model_copy(update={"suites": roles, "compile": allowed})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), change]))
        for attempt in (workspace.plan, lambda: workspace.run(train=no_training)):
            with pytest.raises(InputError, match="Give it one role"):
                attempt()


def test_a_question_that_a_suite_asks_by_now_leaves_the_replay_buffer(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        assert workspace.run().decision == "promoted"
        asked = json.dumps({"role": "user", "content": "Is the fox here?"})
        later = config.suites.folder / "later"
        shutil.copytree(config.suites.folder / "tiny", later)
        for name, old, new in (
            ("suite.yaml", "name: tiny", "name: later"),
            ("items.jsonl", json.dumps({"role": "user", "content": "Count to 3"}), asked),
        ):
            text = (later / name).read_text(encoding="utf-8")
            assert old in text
            (later / name).write_text(text.replace(old, new), encoding="utf-8")
        workspace.config = config.model_copy(update={"suites": config.suites.model_copy(update={"watch": ("later",)})})
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))
        said = "replayed examples leave the buffer: 2 ask what a suite asks by now"  # a correction and its pair
        assert said in workspace.plan().lines
        second = workspace.run()
        assert said in second.notes
        assert not any("fox" in item.example.prompt[-1].content for item in second.buffer.items)


def test_feedback_about_an_everyday_prompt_takes_it_from_the_anchor(tmp_path: Path, tiny_config: Config) -> None:
    """The anchor would hold the answer that was corrected against its correction."""
    prompts = tmp_path / "everyday.jsonl"
    lines = [
        {"id": f"a{i}", "messages": [{"role": "user", "content": text}]}
        for i, text in enumerate(["Is the fox here?", "Count to 3", "How are you?", "Tell me a joke."])
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = tiny_config(anchor={"weight": 0.1, "rows_per_step": 2, "max_new_tokens": 4, "prompts": str(prompts)})
    anchors: list[str] = []

    def remember(**arguments: Any) -> Any:
        anchors.extend(prompt[-1].content for prompt, _ in arguments["anchors"])
        return train_increment(**arguments)

    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        outcome = workspace.run(train=remember)
    assert anchors == ["How are you?", "Tell me a joke."]
    assert "2 everyday prompts were no anchor tonight: feedback or a suite asks them" in outcome.notes


def test_feedback_about_every_everyday_prompt_is_said_before_training(tmp_path: Path, tiny_config: Config) -> None:
    prompts = tmp_path / "everyday.jsonl"
    prompts.write_text('{"id": "a1", "messages": [{"role": "user", "content": "Is the fox here?"}]}', encoding="utf-8")
    config = tiny_config(anchor={"weight": 0.1, "rows_per_step": 2, "max_new_tokens": 4, "prompts": str(prompts)})
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        with pytest.raises(
            InputError, match=r"found feedback or a suite about all 1 of them\. Add others to training\.anchor"
        ):
            workspace.run()


def test_two_runs_through_the_api_do_not_meet(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))

        def again(**_arguments: Any) -> Any:
            with Workspace.open(tiny_config()) as second:
                return second.run()

        with pytest.raises(WorkspaceBusyError, match="expected no other run, found process"):
            workspace.run(train=again)


def test_too_few_corrections_cost_no_night_and_no_try(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        for number in (1, 2, 3):
            few = [served(f"i{number}", "eve"), corrected(f"k{number}", f"i{number}")]
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", few))
            with pytest.raises(NothingToTrainError, match=f"{number} new corrections that can be tested"):
                workspace.run(train=no_training)
        assert workspace.registry.attempts() == () and workspace.registry.quarantined() == frozenset()


def test_a_policy_change_counts_again_where_production_is_moved_back_to_it(tmp_path: Path, tiny_config: Config) -> None:
    head = {"type": "policy_change", "time": "2026-11-01T13:00:00Z", "reviewer": "boss", "supersedes": ["x"]}
    config = tiny_config()
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"boss"})})
    with Workspace.create(config.model_copy(update={"compile": allowed})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), head | {"id": "p1"}]))
        assert workspace.run().decision == "promoted"

        def changes() -> list[str]:
            return [c.id for c in changes_in_effect(workspace.registry, workspace.store, workspace.config)]

        assert changes() == ["p1"]
        workspace.rollback(to=0, reason="a test")
        assert changes() == []
        workspace.promote(1, reason="it was something else")
        assert changes() == ["p1"]


def test_a_policy_change_outlives_the_refused_batches_that_it_came_with(tmp_path: Path, tiny_config: Config) -> None:
    head = {"type": "policy_change", "time": "2026-11-01T13:00:00Z", "reviewer": "boss", "supersedes": ["x"]}
    config = tiny_config()
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"boss"})})
    with Workspace.create(config.model_copy(update={"compile": allowed})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        assert workspace.run().decision == "promoted"
        changes = [head | {"id": "p1"}, head | {"id": "p2", "reviewer": "nobody"}]
        for number, extra in ((2, changes), (3, [])):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", [*night(number, BAD, GOOD), *extra]))
            outcome = workspace.run()
        assert outcome.decision == "quarantined"
        seqs = {stored.event.id: stored.seq for stored in workspace.store.read(after=28)}
        held = workspace.registry.quarantined()
        assert seqs["p1"] not in held and seqs["p2"] in held and seqs["n2-k0"] in held

        with Workspace.open(workspace.config) as later:
            later.import_feedback(write_log(tmp_path / "n4.jsonl", night(4, GOOD, BAD)))
            outcome = later.run()
            assert "p1" in outcome.dataset.account and "p2" not in outcome.dataset.account
            assert outcome.dataset.superseded == {"x"}


def test_a_suite_that_production_was_judged_on_cannot_vanish_after_a_rollback(
    tmp_path: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    lenient = config.model_copy(update={"gate": config.gate.model_copy(update={"max_correction_losses": 1.0})})
    with Workspace.create(lenient) as workspace:
        for number, texts in ((1, (GOOD, BAD)), (2, (BAD, GOOD))):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, *texts)))
            assert workspace.run().decision == "promoted"
        workspace.rollback(to=1, reason="a test")
        copy_suite(config, "tiny2")
        workspace.import_feedback(write_log(tmp_path / "n3.jsonl", night(3, GOOD, BAD)))
        suites = config.suites.model_copy(update={"old": ("tiny2",)})
        workspace.config = lenient.model_copy(update={"suites": suites})
        with pytest.raises(InputError, match="was judged on tiny, which this recipe does not name"):
            workspace.run(train=no_training)


def test_a_kept_measurement_of_another_stack_or_damaged_is_made_again(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        first = workspace.evaluate().suites["tiny"]
        (kept,) = workspace.config.workspace.glob("evaluations/*/tiny-*.json")
        text = kept.read_text(encoding="utf-8")
        for damaged in (text[: len(text) // 2], text.replace(workspace.stack().digest, "0" * 64)):
            assert damaged != text
            kept.write_text(damaged, encoding="utf-8")
            assert workspace.evaluate().suites["tiny"] == first
            assert workspace.stack().digest in kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["peft", "vllm", "merged", "gguf-lora"])
def test_an_export_that_cannot_be_is_refused_before_a_model_is_loaded(
    form: Any, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with Workspace.create(tiny_config()) as workspace:
        monkeypatch.setattr(workspace, "load", no_training)
        with pytest.raises(InputError, match="an export never overwrites"):
            workspace.export("production", tmp_path / "taken", form)
        with pytest.raises(InputError, match="expected a stack with adapters to export, found none"):
            workspace.export(0, tmp_path / "new", form)
    assert not (tmp_path / "new").exists()


def test_a_dry_run_refuses_what_the_run_refuses_before_training(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()

    def refused_by_both(workspace: Workspace, error: type[Exception], said: str) -> None:
        for attempt in (workspace.plan, lambda: workspace.run(train=no_training)):
            with pytest.raises(error, match=said):
                attempt()

    with Workspace.create(config) as workspace:
        only_served = [event for event in night(1, GOOD, BAD) if event["type"] == "interaction"]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", only_served))
        refused_by_both(workspace, NothingToTrainError, "example")
        few = [served("i1", "eve"), corrected("k1", "i1")]
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", few))
        refused_by_both(workspace, NothingToTrainError, "1 new corrections that can be tested")
        margins = config.gate.model_copy(update={"margins": {"tinny": 0.2}})
        workspace.config = config.model_copy(update={"gate": margins})
        refused_by_both(workspace, ConfigError, "names a suite 'tinny' that does not exist, did you mean 'tiny'")
        workspace.config = config
        workspace.evaluate()
        items = config.suites.folder / "tiny" / "items.jsonl"
        items.write_text(items.read_text(encoding="utf-8").replace("Count to 3", "Count up to 3"), encoding="utf-8")
        refused_by_both(workspace, SuiteError, "changed without a new version")


def test_a_dry_run_says_when_no_phase_has_its_minimum(tmp_path: Path, tiny_config: Config) -> None:
    phases = [
        {"objective": "dpo", "learning_rate": 1e-3, "epochs": 1, "minimum": 15},
        {"objective": "sft", "learning_rate": 1e-2, "epochs": 8, "minimum": 14},
    ]
    with Workspace.create(tiny_config(phases=phases)) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        assert workspace.plan().lines
    phases[1]["minimum"] = 15
    with Workspace.open(tiny_config(phases=phases)) as workspace:
        with pytest.raises(NothingToTrainError, match=r"found none: dpo has 14 of 15, sft has 14 of 15\."):
            workspace.plan()
        with pytest.raises(NothingToTrainError, match="lower `minimum` of a phase"):
            workspace.run()


def test_creating_again_with_another_base_is_refused(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    Workspace.create(config).close()
    Workspace.create(config).close()
    other = shutil.copytree(config.base, tmp_path / "other")
    weights = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="as when the registry was made"):
        Workspace.create(config.model_copy(update={"base": str(other)}))


def test_a_night_that_production_knows_already_costs_no_try(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        for number in (1, 2):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, GOOD, BAD)))
            if number == 1:
                assert workspace.run().decision == "promoted"
        with pytest.raises(NothingToTrainError, match="v1 is right on 14 of 14 items of new_corrections already"):
            workspace.run(train=no_training)
        assert workspace.registry.attempts() == ()


def test_a_correction_that_no_step_reached_is_not_held_against_later_nights(
    tmp_path: Path, tiny_config: Config
) -> None:
    config = tiny_config(
        phases=[{"objective": "sft", "learning_rate": 1e-2, "epochs": 1, "max_steps": 1, "batch_size": 8}]
    )
    lenient = config.gate.model_copy(update={"margin": 0.9, "max_negative_flips": 1.0})
    with Workspace.create(config.model_copy(update={"gate": lenient})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        outcome = workspace.run()
        assert outcome.decision == "promoted", outcome.reasons
        account = {use.event: use.outcome for use in workspace.registry.events_of(1)}
        reached = {f"n1-k{n}" for n in range(14) if account[f"n1-k{n}"] == "used"}
        kept = workspace.registry.get_json(str(workspace.registry.head().corrections))
        assert {one["event_id"] for one in kept} == reached and len(reached) == 8


def test_a_policy_change_that_names_nothing_known_is_said(tmp_path: Path, tiny_config: Config) -> None:
    head = {"type": "policy_change", "time": "2026-11-01T13:00:00Z", "supersedes": ["n1-k0", "n1-k99"]}
    config = tiny_config()
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"boss"})})
    with Workspace.create(config.model_copy(update={"compile": allowed})) as workspace:
        changes = [head | {"id": "p1", "reviewer": "boss"}, head | {"id": "p2", "reviewer": "nobody"}]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), *changes]))
        said = "policy change p1 names 1 events that are not in the log, such as 'n1-k99': it ends nothing there"
        assert [line for line in workspace.plan().lines if "policy" in line] == [said]
        assert said in workspace.run().notes


def test_another_log_is_refused_after_a_rejected_attempt_too(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        seqs = [stored.seq for stored in workspace.store.read(after=0)]
        uses = event_uses({"n1-i0": "used"}, {"n1-i0": 1}, {})
        workspace.registry.record_attempt(parent=0, seqs=seqs, reason="a test", uses=uses)
        with pytest.raises(NothingToTrainError, match="the last attempt on these 28 events was rejected"):
            workspace.plan()
        workspace.registry.record_attempt(parent=0, seqs=seqs, reason="a test", seed=1, uses=uses)
        with pytest.raises(NothingToTrainError, match="all 28 events since are quarantined"):
            workspace.plan()
    Path(config.database_url.removeprefix("sqlite:///")).unlink()
    with Workspace.open(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, GOOD, BAD)))
        with pytest.raises(InputError, match=r"expected the log that attempt .* was made from"):
            workspace.plan()


@pytest.mark.parametrize(
    ("users", "reviewers", "kept", "rehearsed"),
    [(2, 0, 1, 0), (5, 0, 1, 0), (6, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0)],
)
def test_distinct_people_turn_a_replayed_verdict(
    users: int, reviewers: int, kept: int, rehearsed: int, tmp_path: Path, tiny_config: Config
) -> None:
    """Five users liked a reply; `users` others, or so many `reviewers`, do not."""
    config = tiny_config()
    asked = night(1, GOOD, BAD)
    ups = [thumb(f"u{n}", "liked", 1) for n in range(5)]
    with Workspace.create(config) as workspace:
        log = [*asked, served("liked", "eve", "It is in the shed."), *ups]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", log))
        assert workspace.run().decision == "promoted"
        again = served("liked", "eve", "It is in the shed.") | {"id": "again", "conversation": "again"}
        downs = [thumb(f"v{n}", "again", -1) for n in range(users)]
        fixed = [corrected(f"k{n}", "again", "It is in the barn.") for n in range(reviewers)]
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", [again, *downs, *fixed, *night(2, BAD, GOOD)]))
        todo = read_pending(workspace.registry, workspace.store, workspace.config)
        dataset = compile_pending(todo, workspace.config, (), workspace.tokenizer)
        replay = replayable(todo, dataset, workspace.config, ())

    def liked(buffer: ReplayBuffer) -> int:
        return sum("liked" in item.example.sources for item in buffer.items)

    assert liked(todo.buffer) == 1
    assert (liked(replay.kept), liked(replay.tonight)) == (kept, rehearsed)
    assert bool(replay.notes) is (users + reviewers > 0)
