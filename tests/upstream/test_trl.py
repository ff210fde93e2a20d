"""Canaries on TRL: references that are not the previous policy, and defaults that cost or tell."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import DPOConfig, DPOTrainer
from trl.trainer import base_trainer, dpo_trainer

from .conftest import TRL, examples, factors, lora, losses, moved, train_only, trained, used

Build = Callable[..., Any]
Fresh = Callable[[], Any]
LN_2 = pytest.approx(math.log(2), abs=1e-5)


def first_batch(trainer: Any) -> dict[str, torch.Tensor]:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def starting_loss(trainer: Any) -> float:
    """The loss of the first batch, before any step."""
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, first_batch(trainer)).item()


def test_dpo_on_a_stack_trains_nothing_and_looks_normal(fresh: Fresh, trl_trainer: Build) -> None:
    """With a frozen and a fresh adapter active, DPO runs at a loss of ln 2 and changes no weight at all.

    TRL switches to its copy "ref" and back, to the first active adapter alone: the fresh one is out of the sum and has
    no gradient from the first step on.
    Ours: adapters/load.py folds the stack, so that there is one adapter; training/phase.py deletes "ref".
    If it fails: nothing breaks. Folding stays: it costs the same at any depth.
    """
    model = get_peft_model(fresh(), used())
    model.add_adapter("new", lora())
    model.base_model.set_adapter(["default", "new"])
    train_only(model, "new")
    before = factors(model, "default") | factors(model, "new")
    trainer = trl_trainer("dpo", model, max_steps=3)
    trainer.train()
    assert losses(trainer) == [LN_2] * 3
    assert not moved(model, before)
    assert model.base_model.active_adapters == ["default"] and trained(model) == {"default"}


def test_the_reference_of_a_deeper_stack_is_its_first_adapter(fresh: Fresh, trl_trainer: Build) -> None:
    """Over two frozen adapters, TRL's reference is a copy of the first one: a fresh third one does not start at ln 2.

    Ours: as above.
    If it fails: nothing to do.
    """
    model = get_peft_model(fresh(), used())
    model.add_adapter("second", used())
    model.add_adapter("new", lora())
    model.base_model.set_adapter(["default", "second", "new"])
    assert starting_loss(trl_trainer("dpo", model)) != LN_2


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_an_adapter_has_to_be_called_default(objective: str, fresh: Fresh, trl_trainer: Build) -> None:
    """DPO and KTO raise KeyError on a PEFT model whose adapter has another name.

    Ours: training/adapter.py takes PEFT's name, and invariants.py checks for it.
    If it fails: nothing to do.
    """
    with pytest.raises(KeyError, match="default"):
        trl_trainer(objective, get_peft_model(fresh(), lora(), adapter_name="tonight"))


def test_who_wraps_the_model_decides_the_reference(fresh: Fresh, trl_trainer: Build) -> None:
    """Wrapped by TRL, the reference is the model with adapters disabled; wrapped before, it is a copy of the adapter.

    The first is the previous policy where the stack is folded into the base, and nowhere else.
    Ours: training/phase.py wraps before (`new_adapter`), deletes the copy "ref", and gives the previous policy's
    log-probabilities with the rows; invariants.py compares them with "adapters disabled" before each phase.
    If it fails: run tests/training, above all `test_three_objectives_train_one_adapter_against_one_reference`.
    """
    by_trl = trl_trainer("dpo", fresh(), peft_config=used())
    assert by_trl.ref_model is None and list(by_trl.model.peft_config) == ["default"]
    assert starting_loss(by_trl) != LN_2

    before = trl_trainer("dpo", get_peft_model(fresh(), used()))
    assert before.ref_model is None and list(before.model.peft_config) == ["default", "ref"]
    assert starting_loss(before) == LN_2


def test_the_second_phase_on_an_adapter_starts_from_a_wrong_reference(fresh: Fresh, trl_trainer: Build) -> None:
    """After SFT, KTO starts at a perfect 0.5, since its reference is a copy of what SFT made; a third trainer raises.

    So a start at 0.5 or ln 2 is necessary and not sufficient.
    Ours: training/phase.py deletes "ref" after each constructor, upon which `default` is active and trains, and
    "adapters disabled" is the reference again; training/objectives.py computes the loss from stored log-probabilities.
    If it fails: see that deleting "ref" is still possible, or no longer necessary, in `run_phase`.
    """
    model = get_peft_model(fresh(), lora())
    trl_trainer("sft", model, learning_rate=5e-2, max_steps=3).train()
    assert starting_loss(trl_trainer("kto", model)) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="'ref' already exists"):
        trl_trainer("dpo", model)

    model.delete_adapter("ref")
    kto = trl_trainer("kto", model)
    model.delete_adapter("ref")
    assert model.active_adapters == ["default"] and trained(model) == {"default"}
    assert abs(starting_loss(kto) - 0.5) > 0.01


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_no_weight_of_a_record_is_honoured(objective: str, fresh: Fresh, trl_trainer: Build) -> None:
    """DPO and KTO drop a column of weights: with all of them 0, the loss is what it was.

    Ours: training/objectives.py multiplies each row's loss by its weight (tests/training/test_objectives.py).
    If it fails: compare upstream's weights with ours; do not multiply twice.
    """
    rows = [row | {"weight": 0.0} for row in examples(objective)]
    trainer = trl_trainer(objective, fresh(), peft_config=lora(), rows=rows)
    assert "weight" not in first_batch(trainer)
    assert starting_loss(trainer) == pytest.approx(math.log(2) if objective == "dpo" else 0.5, abs=1e-5)


def test_stored_reference_log_probabilities_are_ignored(fresh: Fresh, trl_trainer: Build) -> None:
    """Columns ref_chosen_logps and ref_rejected_logps count only with precompute_ref_log_probs=True, ...

    ... which computes its own and refuses a dataset that has them.
    Ours: training/phase.py stores the reference under other names, and objectives.py computes the loss from those.
    If it fails: nothing breaks; upstream's columns might then replace ours.
    """
    rows = [row | {"ref_chosen_logps": 50.0, "ref_rejected_logps": -50.0} for row in examples("dpo")]
    assert starting_loss(trl_trainer("dpo", fresh(), peft_config=lora(), rows=rows)) == LN_2
    with pytest.raises(ValueError, match="duplicated"):
        trl_trainer("dpo", fresh(), peft_config=lora(), rows=rows, precompute_ref_log_probs=True)


def test_precomputing_the_reference_hashes_the_whole_model(
    fresh: Fresh, trl_trainer: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """precompute_ref_log_probs reads every weight once more for a hash, seconds for each billion of them.

    Ours: training/phase.py stores the reference itself and leaves the flag off.
    If it fails: nothing to do.
    """
    hashed: list[int] = []

    def recorded(module: torch.nn.Module) -> str:
        hashed.append(sum(tensor.numel() for tensor in module.state_dict().values()))
        return hash_module(module)

    hash_module = dpo_trainer.hash_module
    monkeypatch.setattr(dpo_trainer, "hash_module", recorded)
    model = fresh()
    weights = sum(parameter.numel() for parameter in model.parameters())
    trl_trainer("dpo", model, peft_config=lora(), precompute_ref_log_probs=True)
    assert len(hashed) == 1 and hashed[0] > weights


def test_ktos_kl_pairs_depend_on_the_batch_on_each_device(fresh: Fresh, trl_trainer: Build) -> None:
    """The mismatched completions are rotated within each device's batch: one batch of 4 is not two of 2.

    Ours: training/phase.py `_kto_rows` rotates within the whole step, however it is cut.
    If it fails: nothing breaks; if the whole step is rotated upstream as well, test_processes.py could compare with it.
    """

    def partners(batch: int) -> list[int]:
        trainer = trl_trainer("kto", fresh(), peft_config=lora(), per_device_train_batch_size=batch)
        completions = list(trainer.train_dataset["completion_ids"])
        return [completions.index(other) for other in trainer.train_dataset["KL_completion_ids"]]

    assert partners(4) == [3, 0, 1, 2]
    assert partners(2) == [1, 0, 3, 2]


def test_kto_wants_two_rows_and_never_shuffles(fresh: Fresh, trl_trainer: Build) -> None:
    """A device's batch of one row raises, and the rows come in the order of the dataset.

    Ours: training/settings.py wants batches of 2 and more; training/batching.py shuffles beforehand.
    If it fails: with a shuffling sampler, see that `_get_train_sampler` in objectives.py still has the last word.
    """
    with pytest.raises(ValueError, match="batch size must be > 1"):
        trl_trainer("kto", fresh(), peft_config=lora(), per_device_train_batch_size=1)
    assert isinstance(trl_trainer("kto", fresh(), peft_config=lora())._get_train_sampler(), SequentialSampler)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_batches_are_drawn_at_random_and_padded(objective: str, fresh: Fresh, trl_trainer: Build) -> None:
    """SFT and DPO draw rows of any length into a batch and pad them to its longest.

    Ours: training/batching.py lays out batches of similar lengths; objectives.py `_get_train_sampler` keeps that order.
    If it fails: see that the order of the rows in a run is still ours, and the same on any number of processes.
    """
    trainer = trl_trainer(objective, fresh(), peft_config=lora())
    assert isinstance(trainer._get_train_sampler(), RandomSampler)
    assert (first_batch(trainer)["attention_mask"] == 0).any()


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_grouping_by_length_raises_for_preferences(objective: str, fresh: Fresh, trl_trainer: Build) -> None:
    """train_sampling_strategy="group_by_length" looks for input_ids, which pairs have not; KTO refuses it.

    Ours: training/batching.py sorts by length itself.
    If it fails: nothing to do; upstream's order is not the same on one process and on two.
    """
    with pytest.raises(ValueError, match="infer lengths" if objective == "dpo" else "requires.*sequential"):
        trl_trainer(objective, fresh(), peft_config=lora(), train_sampling_strategy="group_by_length").train()


def test_dpo_does_not_pack(fresh: Fresh, trl_trainer: Build, caplog: pytest.LogCaptureFixture) -> None:
    """DPOConfig has no packing, and padding_free=True is turned off with a line in the log.

    Ours: training/scoring.py packs rows into lines for every objective.
    If it fails: measure upstream's packing against ours.
    """
    with pytest.raises(TypeError, match="packing"):
        DPOConfig("unused", packing=True)
    assert trl_trainer("dpo", fresh(), peft_config=lora(), padding_free=True).padding_free is False


@pytest.mark.parametrize(("objective", "forwards"), [("sft", 1), ("dpo", 2), ("kto", 4)])
def test_the_reference_is_computed_at_every_step(
    objective: str, forwards: int, fresh: Fresh, trl_trainer: Build
) -> None:
    """A DPO step runs the model twice, a KTO step four times: the reference is computed anew, and so is KTO's KL.

    A pair's prompt is computed twice in each, once for either answer.
    Ours: the reference is stored with the rows (training/phase.py): one forward for SFT and DPO, two for KTO.
    Rows share what all of a batch begin with (training/scoring.py), and no more than that.
    If it fails: measure again; TRL may have caught up.
    """
    model, shapes = fresh(), []
    trainer = trl_trainer(objective, model, peft_config=lora(), max_steps=1)
    model.model.register_forward_pre_hook(
        lambda _module, _inputs, named: shapes.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    trainer.train()
    assert shapes == [8 if objective == "dpo" else 4] * forwards


class HeadProducts(TorchDispatchMode):
    """Records rows and dtype of every matrix product that involves the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.seen = vocabulary, []

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        shapes = [argument.shape for argument in args if isinstance(argument, torch.Tensor)]
        if "mm" in str(function) and any(self.vocabulary in shape for shape in [*shapes, result.shape]):
            self.seen.append((result.shape[0], result.dtype))
        return result


def test_the_head_scores_every_position_and_goes_back_in_fp32(
    fresh: Fresh, trl_trainer: Build, tiny_tokenizer: Any
) -> None:
    """On a CPU, TRL's fused head multiplies prompts and padding by the vocabulary too, and its gradient is in fp32.

    Ours: training/scoring.py `attach_labelled_head` scores the labelled positions alone.
    If it fails: measure upstream's head against ours.
    """
    trainer = trl_trainer("sft", get_peft_model(fresh().bfloat16(), lora()), bf16=True)
    batch = first_batch(trainer)
    rows, tokens = batch["input_ids"].shape
    positions = rows * (tokens - 1)
    with HeadProducts(len(tiny_tokenizer)) as head:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        assert head.seen == [(positions, torch.bfloat16)]
        loss.backward()
    assert (batch["labels"] != -100).sum() < positions / 2
    assert (positions, torch.float32) in head.seen[1:]


def test_a_packed_batch_reaches_any_registered_attention(fresh: Fresh, trl_trainer: Build) -> None:
    """SFT's packing hands the borders of its rows to whatever attention function the model is set to.

    TRL documents it for FlashAttention alone.
    Ours: unused, since training/scoring.py packs with an ordinary mask; it is the way to torch's varlen attention.
    If it fails: nothing breaks.
    """
    seen: list[torch.Tensor] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["cu_seq_lens_q"])
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("recorded", attend)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    model = fresh()
    model.set_attn_implementation("recorded")
    trainer = trl_trainer("sft", model, peft_config=lora(), packing=True, max_length=256, max_steps=1)
    trainer.train()
    assert len(seen[0]) == 5  # four rows in one line


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_checkpointing_is_on_and_bf16_too_unless_told_otherwise(objective: str, tmp_path: Path) -> None:
    """TRL's configs recompute activations in the backward pass by default, a fifth slower and more, and run in bf16.

    Ours: training/phase.py `_arguments` sets checkpointing off, under its new name and its old one, and bf16 as the
    recipe says.
    If it fails: drop the names that are gone from `_arguments`; the canary below then says whether it is still off.
    """
    config = TRL[objective][0](str(tmp_path), use_cpu=True)
    assert (config.activation_checkpointing, config.gradient_checkpointing, config.bf16) == (True, True, True)


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_checkpointing_can_be_turned_off(objective: str, fresh: Fresh, trl_trainer: Build) -> None:
    """With activation_checkpointing=False and its alias gradient_checkpointing=None, no layer checkpoints.

    Ours: training/phase.py `_arguments` says exactly that.
    If it fails: find the new way to say it, or a run takes twice the time.
    """
    model = fresh()
    trl_trainer(objective, model, peft_config=lora(), max_steps=1).train()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("objective", TRL)
def test_the_adapter_of_a_four_bit_base_becomes_bf16(objective: str, four_bit: Any, trl_trainer: Build) -> None:
    """Every trainer casts an adapter on a 4-bit base to bf16, also one that is half trained (peft#2889).

    bf16 has 8 bits: Adam's steps that are smaller than a few thousandths of a weight are rounded away, and a phase that
    starts from another one's result starts from a rounded one. On a CPU without bf16 the products are emulated too.
    Ours: training/phase.py gives the adapter back its own values and dtype, `_as_it_was`.
    If it fails: the repair has nothing to do. Remove it once the oldest version that is supported casts nothing.
    """
    model = get_peft_model(four_bit, used())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 1e-3)  # values that bf16 does not have, as training leaves them
    before = factors(model, "default")
    assert {p.dtype for p in before.values()} == {torch.float32}
    trainer = trl_trainer(objective, model)
    after = factors(trainer.model, "default")
    assert {p.dtype for p in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name].float()) for name in before)


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_a_model_given_by_name_is_loaded_in_fp32(
    objective: str, fresh: Fresh, trl_trainer: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """A bf16 model's name, given to a trainer, makes an fp32 model of twice the size.

    Ours: adapters/load.py loads every model, in the dtype it is told.
    If it fails: nothing to do.
    """
    fresh().bfloat16().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").dtype == torch.bfloat16
    assert trl_trainer(objective, str(tmp_path / "base")).model.dtype == torch.float32


def test_every_trainer_reports_its_use(fresh: Fresh, trl_trainer: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trainer's constructor sends trainer, architecture and device to its makers, unless switched off or in a CI.

    The switch is read once, when huggingface_hub is imported.
    Ours: incremental_llm/__init__.py sets HF_HUB_DISABLE_TELEMETRY before anything else is imported
    (tests/test_package.py); the README says so.
    If it fails: find the new switch. If the constant is gone, nothing keeps the reports back any more.
    """
    sent: list[str] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda topic, **_rest: sent.append(topic))
    monkeypatch.delenv("CI", raising=False)
    for objective in TRL:
        trl_trainer(objective, fresh(), peft_config=lora())
    assert sent == ["trl/SFTTrainer", "trl/DPOTrainer", "trl/KTOTrainer"]
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY


def test_a_peft_model_cannot_be_the_reference(fresh: Fresh, tiny_tokenizer: Any, trl_trainer: Build) -> None:
    """A ref_model that is a PEFT model fails at the first step: its head is looked for in the wrong place.

    Ours: no ref_model is ever given.
    If it fails: nothing to do.
    """
    trainer = trl_trainer("dpo", get_peft_model(fresh(), lora()))
    explicit = DPOTrainer(
        model=trainer.model.get_base_model(),
        ref_model=get_peft_model(fresh(), lora()),
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=tiny_tokenizer,
    )
    with pytest.raises(AttributeError, match="last_hidden_state"):
        explicit.train()
