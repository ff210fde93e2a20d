"""A resident policy: it learns in small bits, like a very small increment each time, and leaves a plain adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from incremental_llm.artifacts import file_digest, verify_folder
from incremental_llm.errors import ConfigError, NothingToTrainError, TrainingError
from incremental_llm.replay import ReplayBuffer, ReplaySettings
from incremental_llm.training import online as online_module
from incremental_llm.training.growth import increments_behind
from incremental_llm.training.increment import read_result
from incremental_llm.training.moments import moments_beside
from incremental_llm.training.online import OnlineTrainer
from incremental_llm.training.settings import TrainingSettings

from .conftest import everyday, examples_of, settings_of

Online = Callable[..., OnlineTrainer]


@pytest.fixture
def online(tiny_model_dir: Path) -> Online:
    """A trainer on the tiny model: all three phases, an anchor, four rehearsed rows; keyword arguments replace any."""

    def make(*objectives: str, **changes: Any) -> OnlineTrainer:
        arguments: dict[str, Any] = {
            "base_folder": tiny_model_dir,
            "adapter_folders": [],
            "settings": settings_of(*(objectives or ("dpo", "kto", "sft"))),
            "anchors": everyday(),
            "replay": ReplaySettings(ratio=0.5, minimum=4),
            "steps": 3,
        }
        return OnlineTrainer(**(arguments | changes))

    return make


def weights(trainer: OnlineTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_updates_move_the_one_adapter_and_nothing_else(online: Online, tmp_path: Path, tiny_model_dir: Path) -> None:
    base = file_digest(tiny_model_dir / "model.safetensors")
    trainer, examples = online(), examples_of("pair", "unpaired", "sft")
    first = trainer.update(examples[:6])
    after_first = weights(trainer)
    second = trainer.update(examples[6:12])
    assert (first.number, first.examples, first.replayed) == (1, 6, 0)
    assert (second.number, second.replayed) == (2, 6)  # all that there was: two rows of each kind
    assert [phase.objective for phase in second.phases] == ["dpo", "kto", "sft"]
    assert 0 < second.steps <= 9 and second.tokens > 0 and second.seconds > 0
    assert set(second.losses) == {"dpo", "kto", "sft"}
    assert any(not torch.equal(after_first[name], now) for name, now in weights(trainer).items())
    result = trainer.save(tmp_path / "adapter")
    assert (result.replaces, result.increments, result.adapter) == (0, 1, tmp_path / "adapter")
    assert result.tokens == first.tokens + second.tokens
    assert result == read_result(result.adapter)
    assert file_digest(tiny_model_dir / "model.safetensors") == base
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), result.adapter).eval()
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, trainer.causal_lm(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_the_reference_is_the_policy_right_before_each_update(objective: str, online: Online) -> None:
    kind = {"dpo": "pair", "kto": "unpaired"}[objective]
    nothing_old = ReplaySettings(ratio=0, minimum=0)  # a replayed pair's loss has its NLL in it
    told = settings_of(objective, anchor={"weight": 0})
    trainer = online(objective, settings=told, anchors=[], replay=nothing_old)
    plain = [example.model_copy(update={"weight": 1.0}) for example in examples_of(kind)]
    starts = [trainer.update(plain[i : i + 4]).phases[0].losses[0] for i in (0, 4)]
    expected = {"dpo": 0.693147, "kto": 0.5}[objective]
    assert starts[0] == pytest.approx(expected, abs=1e-4)
    assert starts[1] == pytest.approx(expected, abs=1e-4)


def test_equal_seeds_and_feedback_give_equal_weights(online: Online, tmp_path: Path) -> None:
    examples = examples_of("pair", "sft")
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = online(settings=settings_of("dpo", "sft", seed=seed))
        for start in (0, 8):
            trainer.update(examples[start : start + 8])
        digests.append(file_digest(trainer.save(tmp_path / name).adapter / "adapter_model.safetensors"))
    assert digests[0] == digests[1] != digests[2]


def test_what_was_learnt_is_rehearsed_from_a_bounded_buffer(online: Online) -> None:
    trainer = online("sft", buffer=ReplayBuffer(capacity={"sft": 5}).updated(examples_of("sft")[:3], 7, seed=0))
    for example in examples_of("sft")[3:]:
        report = trainer.update([example])
        assert report.replayed == min(4, 3 + report.number - 1)
        assert not report.not_trained
    assert trainer.buffer.counts()["sft"] == {7: 2, 8: 3}  # equal shares of five
    assert trainer.buffer.seen["sft"] == {7: 3, 8: 7}


def test_an_endless_stream_is_cut_into_increments(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_module, "INCREMENT", 3)
    trainer = online("sft", buffer=ReplayBuffer(capacity={"sft": 6}))
    for example in examples_of("sft")[:7]:
        trainer.update([example])
    assert trainer.buffer.seen["sft"] == {1: 3, 2: 3, 3: 1}
    assert trainer.buffer.counts()["sft"] == {1: 2, 2: 3, 3: 1}


def test_a_fresh_buffer_is_kept_as_the_recipe_says(online: Online) -> None:
    told = ReplaySettings(policy="half_life", half_life=1, capacity={"sft": 2}, ratio=0.1, minimum=2)
    trainer = online("sft", buffer=None, replay=told)
    for example in examples_of("sft")[:4]:
        trainer.update([example])
    assert trainer.buffer.policy == "half_life" and len(trainer.buffer.of_kind("sft")) == 2


def test_the_anchor_holds_everyday_answers_to_the_policy_at_the_start(online: Online) -> None:
    drift = {}
    for weight in (1e-6, 50.0):
        trainer = online("sft", settings=settings_of("sft", anchor={"weight": weight, "rows_per_step": 3}), steps=6)
        for _ in range(2):
            trainer.update(examples_of("sft"))
        report = trainer.update(examples_of("sft"))
        drift[weight] = report.phases[0].anchor_kl[-1] / weight
    assert 0 < drift[50.0] < 0.5 * drift[1e-6]


@pytest.mark.parametrize("growth", ["stack", "continue"])
def test_it_starts_from_a_stack_as_an_increment_would(
    growth: str, online: Online, increment: Callable[..., Any], tmp_path: Path
) -> None:
    told = settings_of("sft", growth=growth, replay_kl={"weight": 0.1}, ewc={"weight": 0.1})
    below = increment(settings=told, out=tmp_path / "below").adapter
    digest = verify_folder(below)
    trainer = online(settings=told, adapter_folders=[below])
    trainer.update(examples_of("sft")[:4])
    report = trainer.update(examples_of("sft")[4:8])
    assert set(report.phases[0].terms) == {"anchor_kl", "replay_kl", "dark", "ewc"}
    result = trainer.save(tmp_path / "adapter")
    assert (result.replaces, result.increments) == ((1, 2) if growth == "continue" else (0, 1))
    assert increments_behind([result.adapter]) == result.increments
    assert (result.adapter / "optimizer-sft.safetensors").is_file() == (growth == "continue")
    assert verify_folder(below) == digest
    later = increment(
        settings=told, adapter_folders=[result.adapter], out=tmp_path / "later"
    )  # a night goes on from it
    assert later.phases[0].steps > 0


def test_an_update_that_fails_leaves_the_policy_as_it_was(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    from incremental_llm.training import objectives

    trainer = online("sft")
    trainer.update(examples_of("sft")[:4])
    before, buffer = weights(trainer), trainer.buffer
    loss, calls = objectives.WeightedSFT.objective_loss, []

    def broken(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        return loss(self, *arguments) * (float("nan") if len(calls) == 2 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(objectives.WeightedSFT, "objective_loss", broken)
        with pytest.raises(TrainingError, match="the loss is nan"):
            trainer.update(examples_of("sft")[4:8])
    assert all(torch.equal(before[name], now) for name, now in weights(trainer).items())
    assert (trainer.updates, trainer.buffer) == (1, buffer)
    assert trainer.update(examples_of("sft")[4:8]).number == 2


def test_feedback_that_no_phase_takes_is_no_update(online: Online) -> None:
    trainer = online("sft")
    with pytest.raises(
        NothingToTrainError, match="expected a phase with its `minimum` of examples, found 0 sft, 10 pair"
    ):
        trainer.update(examples_of("pair"))
    assert trainer.updates == 0 and not trainer.buffer.items


def test_what_was_too_few_of_its_kind_waits_and_is_not_rehearsed(online: Online) -> None:
    trainer, thumbs = online("kto", "sft"), examples_of("unpaired")
    downs = [thumb for thumb in thumbs if not thumb.desirable]
    report = trainer.update([*examples_of("sft")[:4], *downs])
    assert set(report.waiting) == {thumb.id for thumb in downs} <= set(report.not_trained)
    assert {item.example.kind for item in trainer.buffer.items} == {"sft"}
    both = trainer.update([*examples_of("sft")[4:8], *thumbs])
    assert both.waiting == () and {"sft", "kto"} == set(both.losses)


def test_a_frozen_weight_that_moved_is_never_saved(online: Online, tmp_path: Path) -> None:
    trainer = online("sft")
    trainer.update(examples_of("sft")[:2])
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if not p.requires_grad).add_(1e-3)
    with pytest.raises(TrainingError, match="the frozen weights changed"):
        trainer.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_is_written_before_it_is_saved(online: Online, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    online("sft").update(examples_of("sft"))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_the_recipes_cut_to_a_few_steps(online: Online) -> None:
    told = TrainingSettings().model_copy(update={"precision": "fp32"})
    found = online(settings=told, steps=5).settings
    assert [phase.max_steps for phase in found.phases] == [5, 5, 5]
    assert [phase.minimum for phase in found.phases] == [1, 2, 1]


@pytest.mark.parametrize(
    "replay", [{"answers": "on_policy"}, {"policy": "prioritised"}, {"max_days": 3.0}, {"balance": "topics"}]
)
def test_replay_that_needs_production_is_refused_and_not_ignored(replay: dict[str, Any], online: Online) -> None:
    ((key, value),) = replay.items()
    with pytest.raises(ConfigError, match=rf"found replay\.{key}: {value}"):
        online("sft", replay=ReplaySettings(**replay))


def test_moments_of_an_objective_that_is_not_trained_now_go_along(online: Online, tmp_path: Path) -> None:
    goes_on = settings_of("dpo", "sft", growth="continue")
    first = online(settings=goes_on)
    first.update(examples_of("pair", "sft"))
    adapter = first.save(tmp_path / "first").adapter
    second = online(adapter_folders=[adapter], settings=settings_of("sft", growth="continue"))
    second.update(examples_of("sft"))
    assert moments_beside(second.save(tmp_path / "second").adapter).keys() == {"dpo", "sft"}
