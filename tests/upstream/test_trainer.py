"""Canaries on transformers' Trainer: losses that look well, and checkpoints that look whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers.trainer_utils import get_last_checkpoint

from .conftest import factors, lora, losses, moved, train_only, trained, used

Build = Callable[..., Any]
Fresh = Callable[[], Any]


def test_one_nan_ruins_every_weight_and_the_log_shows_a_loss_of_0(fresh: Fresh, plain_trainer: Build) -> None:
    """Clipping spreads a single NaN gradient over all weights; the losses after it are logged as 0.0.

    Ours: training/objectives.py stops at the first loss that is not finite, invariants.py `check_gradients` before
    clipping; phase.py turns logging_nan_inf_filter off (tests/training/test_increment.py).
    If it fails: nothing breaks. See that gradients are still clipped after `training_step`, where ours are checked.
    """
    model = get_peft_model(fresh(), lora())
    trainer = plain_trainer(model, max_steps=3)
    one = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)
    one.register_hook(lambda gradient: gradient * (math.nan if trainer.state.global_step == 1 else 1.0))
    trainer.train()
    assert all(value.isnan().all() for value in factors(model, "default").values())
    assert losses(trainer)[2] == 0.0


def test_an_evaluation_leaves_nan_batches_out_of_its_mean(fresh: Fresh, plain_trainer: Build) -> None:
    """`evaluate()` averages the finite batches alone: half of them NaN, and eval_loss looks as ever.

    Ours: eval_loss is never read. The gate decides on scored answers (evaluation/), and an answer always has a score.
    If it fails: nothing to do.
    """
    trainer = plain_trainer(get_peft_model(fresh(), lora()))
    whole = trainer.evaluate()["eval_loss"]
    compute_loss, calls = trainer.compute_loss, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        loss, outputs = compute_loss(*args, **kwargs)
        return loss * (math.nan if len(calls) == 1 else 1.0), outputs

    trainer.compute_loss = broken
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole)
    assert len(calls) == 2


def test_a_checkpoint_cut_short_is_the_last_one(
    fresh: Fresh, plain_trainer: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkpoint is written file by file under its final name; the one with the highest number is the last, even ...

    ... if the process died before its optimizer was written, or if the folder is empty.
    Ours: training/checkpoint.py seals each with a manifest, written last, and takes no other
    (tests/training/test_checkpoint.py).
    If it fails: checkpoints may appear whole now. See that `on_save` comes after that; seals still find damage.
    """
    save = torch.save

    def dies(what: Any, where: Any, *args: Any, **kwargs: Any) -> None:
        if Path(where).name == "optimizer.pt":
            raise KeyboardInterrupt
        save(what, where, *args, **kwargs)

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        plain_trainer(get_peft_model(fresh(), lora()), save_strategy="steps", save_steps=1).train()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")
    assert not (tmp_path / "checkpoint-1" / "trainer_state.json").exists()
    (tmp_path / "checkpoint-9").mkdir()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-9")


def test_missing_states_are_resumed_without_a_word(fresh: Fresh, plain_trainer: Build, tmp_path: Path) -> None:
    """Without its optimizer, scheduler and random state a checkpoint resumes, to other weights.

    There is no warning either, which would be an error here.
    Ours: training/checkpoint.py takes a checkpoint with every file its manifest names, or none.
    If it fails: nothing to do.
    """

    def run(out: str, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(fresh(), lora())
        trainer = plain_trainer(model, output_dir=str(tmp_path / out), max_steps=3, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return factors(model, "default")

    whole = run("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = run("resumed", checkpoint)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    silent = run("silent", checkpoint)
    assert any(not torch.equal(value, whole[name]) for name, value in silent.items())


def test_resuming_a_stack_trains_its_oldest_adapter(fresh: Fresh, plain_trainer: Build, tmp_path: Path) -> None:
    """A run on a frozen and a fresh adapter, resumed, activates and trains the frozen one.

    Uninterrupted it does not: the two runs end with different models.
    Ours: adapters/load.py folds the stack, so that a checkpoint holds one adapter.
    If it fails: nothing to do.
    """

    def stack() -> Any:
        torch.manual_seed(0)
        model = get_peft_model(fresh(), used(), adapter_name="old")
        model.add_adapter("new", lora())
        model.base_model.set_adapter(["old", "new"])
        train_only(model, "new")
        return model

    model = stack()
    old = factors(model, "old")
    plain_trainer(model, save_strategy="steps", save_steps=1).train()
    assert not moved(model, old)

    resumed = stack()
    plain_trainer(resumed, output_dir=str(tmp_path / "resumed")).train(str(tmp_path / "checkpoint-1"))
    assert resumed.base_model.active_adapters == ["old"] and trained(resumed) == {"old"}
    assert moved(resumed, old)


def test_a_pickle_lies_beside_every_saved_adapter(fresh: Fresh, plain_trainer: Build, tmp_path: Path) -> None:
    """`save_model` writes training_args.bin, a pickle of any objects, into the adapter's folder.

    Ours: training/adapter.py `save_adapter` lets PEFT write an adapter; registry/objects.py refuses pickles.
    If it fails: nothing to do.
    """
    plain_trainer(get_peft_model(fresh(), lora())).save_model(str(tmp_path / "adapter"))
    pickle = tmp_path / "adapter" / "training_args.bin"
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(pickle)
