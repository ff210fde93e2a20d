"""The losses: their values on paper, their agreement with TRL, and the weights that TRL lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.losses import dpo_losses, kto_losses
from incremental_llm.training.objectives import TRAINERS
from incremental_llm.training.plan import _another
from incremental_llm.training.regularizers.anchor import Anchor
from incremental_llm.training.regularizers.memory import not_held
from incremental_llm.training.regularizers.teachers import kl_sum
from incremental_llm.training.scoring import attach_labelled_head, row_logps
from incremental_llm.training.settings import PhaseSettings

PROMPTS = ["How long is a return?", "Where is the shop?", "Who answers?", "What does it cost?"]


def test_dpo_starts_at_ln_2_and_falls_with_the_margin() -> None:
    same = torch.tensor([-4.0])
    assert dpo_losses(same, same - 3, same, same - 3, beta=0.1).item() == pytest.approx(math.log(2))
    # margin 2 nats at beta 0.5: -log sigmoid(1)
    assert dpo_losses(same + 2, same, same, same, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_kto_is_a_half_at_the_reference_and_moves_apart() -> None:
    ref = torch.tensor([-5.0, -5.0])
    desirable = torch.tensor([True, False])
    assert kto_losses(ref, ref, desirable, torch.tensor(0.0), beta=0.1).tolist() == [0.5, 0.5]
    up = kto_losses(ref + 3, ref, desirable, torch.tensor(0.0), beta=1.0)
    assert up[0] < 0.5 < up[1]


def test_kl_is_zero_for_equal_and_exact_for_known_distributions() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.5]]))
    student = torch.log(torch.tensor([[0.9, 0.1]]))
    assert kl_sum(teacher, teacher).item() == pytest.approx(0.0, abs=1e-7)
    assert kl_sum(teacher, student).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))


def _row(tokenizer: Any, prompt: str, answer: str) -> Row:
    ids = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    return Row(tuple(ids), tuple(tokenizer(answer + "<|im_end|>")["input_ids"]))


@pytest.fixture
def adapted(tiny_model: Any) -> Any:
    """The tiny model with an adapter that already differs from the reference."""
    attach_labelled_head(tiny_model)
    torch.manual_seed(0)
    return get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def _features(objective: str, tokenizer: Any, weights: list[float]) -> list[dict[str, Any]]:
    rows = [_row(tokenizer, p, f"It is {i * 7} days") for i, p in enumerate(PROMPTS)]
    labelled = sum(len(r.completion) for r in rows)
    features = []
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        other = _row(tokenizer, PROMPTS[i], "I do not know, sorry")
        base: dict[str, Any] = {"prompt_ids": list(row.prompt), "weight": weight, "held_scale": 0.0, **not_held()}
        if objective == "sft":
            features.append(base | {"completion_ids": list(row.completion), "share": len(rows) / labelled})
        elif objective == "dpo":
            sides = {"chosen_ids": list(row.completion), "rejected_ids": list(other.completion)}
            features.append(base | sides | {"nll_weight": 0.0, "ref_chosen": -20.0 - i, "ref_rejected": -22.0 + i})
        else:
            turned = list(rows[i - 1].completion)
            extra = {"desirable": i % 2 == 0, "ref_logps": -21.0 + i, "ref_kl_logps": -19.0 - i}
            features.append(base | {"completion_ids": list(row.completion), "kl_completion_ids": turned} | extra)
    return features


def _trainer(objective: str, model: Any, tokenizer: Any, tmp_path: Path, features: list[dict[str, Any]]) -> Any:
    trainer_class = TRAINERS[objective]
    arguments = {} if objective == "sft" else {"beta": 0.3}
    config = trainer_class.config(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        report_to="none",
        activation_checkpointing=False,
        gradient_checkpointing=None,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        per_device_train_batch_size=4,
        **arguments,
    )
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(features),
        processing_class=tokenizer,
        data_collator=trainer_class.collate,
    )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
        model.set_adapter("default")
    trainer.phase = PhaseSettings(objective=objective, learning_rate=1e-3, epochs=1, batch_size=4, **arguments)
    return trainer


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_a_row_of_weight_zero_gives_zero_gradient(
    objective: str, adapted: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Zero weight everywhere: no gradient. Zero weight on one row: the gradient of a batch whose other rows stay."""
    features = _features(objective, tiny_tokenizer, [0.0] * 4)
    trainer = _trainer(objective, adapted, tiny_tokenizer, tmp_path, features)
    trainer.compute_loss(adapted, trainer.collate(features)).backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert all(g is not None and torch.count_nonzero(g) == 0 for g in gradients)


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_the_loss_is_linear_in_every_weight(objective: str, adapted: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    losses = []
    for weights in ([1.0] * 4, [1.0, 0.0, 1.0, 1.0], [1.0, 3.0, 1.0, 1.0]):
        features = _features(objective, tiny_tokenizer, weights)
        trainer = _trainer(objective, adapted, tiny_tokenizer, tmp_path, features)
        losses.append(trainer.compute_loss(adapted, trainer.collate(features)).item())
    one, without, triple = losses
    assert triple - without == pytest.approx(3 * (one - without), rel=1e-3)
    assert one != pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_at_unit_weights_the_loss_is_trls_own(
    objective: str, adapted: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    features = _features(objective, tiny_tokenizer, [1.0] * 4)
    trainer = _trainer(objective, adapted, tiny_tokenizer, tmp_path, features)
    batch = trainer.collate(features)
    ours = trainer.compute_loss(adapted, batch).item()
    mask_BT = torch.zeros_like(batch["ids"], dtype=torch.long)
    mask_BT[:, 1:] = batch["scored"][:, :-1].long()
    shared = {"input_ids": batch["ids"], "attention_mask": torch.ones_like(batch["ids"])}
    if objective == "sft":
        labels = batch["ids"].masked_fill(mask_BT == 0, -100)
        theirs = SFTTrainer.compute_loss(trainer, adapted, shared | {"labels": labels})
    elif objective == "dpo":
        trainer.precompute_ref_logps = True
        refs = {"ref_chosen_logps": batch["ref_chosen"], "ref_rejected_logps": batch["ref_rejected"]}
        theirs = DPOTrainer._compute_loss(trainer, adapted, shared | {"completion_mask": mask_BT} | refs, False)
    else:
        trainer.precompute_ref_logps = True
        mismatched = [Row(tuple(f["prompt_ids"]), tuple(f["kl_completion_ids"])) for f in features]
        kl_ids_BT, kl_scored_BT = pad_rows(mismatched)
        kl_mask_BT = torch.zeros_like(kl_ids_BT, dtype=torch.long)
        kl_mask_BT[:, 1:] = kl_scored_BT[:, :-1].long()
        rest = {
            "completion_mask": mask_BT,
            "KL_input_ids": kl_ids_BT,
            "KL_attention_mask": torch.ones_like(kl_ids_BT),
            "KL_completion_mask": kl_mask_BT,
            "label": batch["desirable"],
            "ref_logps": batch["ref_logps"],
            "ref_KL_logps": torch.tensor([f["ref_kl_logps"] for f in features]),
        }
        theirs = KTOTrainer._compute_loss(trainer, adapted, shared | rest, False)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert ours == pytest.approx(theirs.item(), rel=1e-4)


def test_the_anchor_is_zero_at_the_teacher_and_the_same_however_it_is_cut(tiny_model: Any, tiny_tokenizer: Any) -> None:
    import contextlib

    attach_labelled_head(tiny_model)
    rows = [_row(tiny_tokenizer, p, f"It is {i} days, and more") for i, p in enumerate(PROMPTS)]
    anchor = Anchor(rows, weight=2.0, rows_per_step=4, seed=0)
    anchor.remember_teacher(tiny_model, contextlib.nullcontext)

    def loss(student: Any, step: int, rank: int, processes: int) -> float:
        share = anchor.share(step, rank, processes)
        ids_BT, scored_BT = pad_rows(share.rows)
        logits_NV = student(input_ids=ids_BT, labelled_BT=scored_BT).logits
        return float(anchor.loss(tiny_model, share, logits_NV).detach())

    assert loss(tiny_model, 0, 0, 1) == pytest.approx(0.0, abs=1e-5)
    torch.manual_seed(1)
    student = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    whole = loss(student, 3, 0, 1)
    assert whole > 0
    assert whole == pytest.approx((loss(student, 3, 0, 2) + loss(student, 3, 1, 2)) / 2, rel=1e-4)


def test_every_anchor_row_is_visited_once_a_lap(tiny_tokenizer: Any) -> None:
    rows = [_row(tiny_tokenizer, f"{p} {i}", "yes") for i, p in enumerate(PROMPTS * 2)]
    anchor = Anchor(rows, weight=1.0, rows_per_step=3, seed=0)
    visited = [i for step in range(8) for i in anchor._rows_of(step)]
    assert sorted(visited[:8]) == sorted(visited[8:16]) == list(range(8))


def test_completions_alone_are_scored(tiny_model: Any, tiny_tokenizer: Any) -> None:
    attach_labelled_head(tiny_model)
    row = _row(tiny_tokenizer, PROMPTS[0], "It is 7 days")
    alone = row_logps(tiny_model, *pad_rows([row]))
    beside = row_logps(tiny_model, *pad_rows([row, _row(tiny_tokenizer, "x" * 60, "long " * 20)]))
    logits = tiny_model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(-1)
    start = len(row.prompt) - 1
    by_hand = sum(logits[start + k, token] for k, token in enumerate(row.completion))
    assert alone.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert beside[0].item() == pytest.approx(alone.item(), rel=1e-5)


@given(batch=st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_the_kl_baseline_never_uses_a_rows_own_completion(batch: list[int]) -> None:
    for place, index in enumerate(batch):
        other = _another(batch, place)
        assert other in batch
        assert other != index or set(batch) == {index}


def test_robust_dpo_is_the_clean_loss_on_average_over_turned_pairs() -> None:
    """Chowdhury et al. 2024: with a share e of turned pairs, the expected robust loss is the loss of clean pairs."""
    chosen, rejected, same = torch.tensor([-3.0]), torch.tensor([-6.0]), torch.tensor([-4.0])
    clean = dpo_losses(chosen, rejected, same, same, beta=0.5)
    share = 0.2
    straight = dpo_losses(chosen, rejected, same, same, 0.5, share)
    turned = dpo_losses(rejected, chosen, same, same, 0.5, share)
    assert ((1 - share) * straight + share * turned).item() == pytest.approx(clean.item(), rel=1e-5)
    assert dpo_losses(same, same, same, same, 0.5, share).item() == pytest.approx(math.log(2))


def test_the_nll_term_adds_the_chosen_answers_nll_a_token(adapted: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    features = _features("dpo", tiny_tokenizer, [1.0] * 4)
    trainer = _trainer("dpo", adapted, tiny_tokenizer, tmp_path, features)
    plain = trainer.compute_loss(adapted, trainer.collate(features)).item()
    with_nll = [f | {"nll_weight": 0.5} for f in features]
    both = trainer.compute_loss(adapted, trainer.collate(with_nll)).item()
    rows = [Row(tuple(f["prompt_ids"]), tuple(f["chosen_ids"])) for f in features]
    logps_B = row_logps(adapted, *pad_rows(rows))
    nll = sum(-logps_B[i].item() / len(row.completion) for i, row in enumerate(rows)) / len(rows)
    assert both - plain == pytest.approx(0.5 * nll, rel=1e-4)


def test_a_settled_pair_is_nll_alone_and_has_no_rejected_answer(
    adapted: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    features = _features("dpo", tiny_tokenizer, [1.0] * 4)
    features[1] |= {"rejected_ids": [], "weight": 0.0, "nll_weight": 1.0}
    trainer = _trainer("dpo", adapted, tiny_tokenizer, tmp_path, features)
    batch = trainer.collate(features)
    assert len(batch["ids"]) == 7
    mixed = trainer.compute_loss(adapted, batch).item()
    alone = [f for i, f in enumerate(features) if i != 1]
    pairs = trainer.compute_loss(adapted, trainer.collate(alone)).item()
    row = Row(tuple(features[1]["prompt_ids"]), tuple(features[1]["chosen_ids"]))
    nll = -row_logps(adapted, *pad_rows([row])).item() / len(row.completion)
    assert mixed == pytest.approx((3 * pairs + nll) / 4, rel=1e-4)
