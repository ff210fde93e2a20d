"""Canaries: what upstream libraries do that this package works around, shown by running the installed versions.

A canary passes while upstream misbehaves. Its docstring says what upstream does, what of ours answers it, and what to
do when the canary fails because an upgrade changed it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from incremental_llm.adapters.load import load_base

IDS_BT = torch.tensor([[5, 9, 2, 40, 77, 3]])
PROMPTS = ["How long is a return?", "Where is the shop?", "Who answers?", "What does it cost?"]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"

TRL = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}


def lora(**changes: Any) -> LoraConfig:
    """A small LoRA on two of the layers' modules; `init_lora_weights=False` makes one that does something at once."""
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    return LoraConfig(task_type="CAUSAL_LM", **given | changes)


def used(**changes: Any) -> LoraConfig:
    """`lora`, with a random B instead of 0: an adapter that was trained."""
    return lora(init_lora_weights=False, **changes)


def trained(model: Any) -> set[str]:
    """Names of the adapters that take gradients."""
    return {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_only(model: Any, adapter: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{adapter}." in name)


def factors(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Copies of an adapter's factors."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if f".{adapter}." in n}


def moved(model: Any, before: dict[str, torch.Tensor]) -> bool:
    """Whether any of these factors is another one now."""
    now = dict(model.named_parameters())
    return any(not torch.equal(now[name], value) for name, value in before.items())


def losses(trainer: Any) -> list[float]:
    """The logged loss of every step."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def examples(objective: str) -> list[dict[str, Any]]:
    """Four examples in TRL's own columns."""
    rows = []
    for number, prompt in enumerate(PROMPTS):
        answer, other = f" It is {7 * number} days.", " Nobody knows that."
        kinds: dict[str, dict[str, Any]] = {
            "sft": {"completion": answer},
            "dpo": {"chosen": answer, "rejected": other},
            "kto": {"completion": answer, "label": number % 2 == 0},
        }
        rows.append({"prompt": prompt, **kinds[objective]})
    return rows


@pytest.fixture(autouse=True, scope="module")
def _light() -> Iterator[None]:
    """One thread; and whatever is imported by now is left out of the full collection that each `train()` asks for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def fresh(tiny_model: Any) -> Callable[[], Any]:
    """New copies of the tiny model."""
    torch.manual_seed(0)
    return lambda: copy.deepcopy(tiny_model)


@pytest.fixture
def four_bit(tiny_model: Any, tmp_path: Path) -> Any:
    """A random base of one layer, wide enough for blocks of 64 weights, in nf4 on the CPU."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64, "num_hidden_layers": 1}
    config = type(tiny_model.config)(**tiny_model.config.to_dict() | shape)
    torch.manual_seed(0)
    type(tiny_model)(config).save_pretrained(tmp_path)
    return load_base(tmp_path, dtype=torch.bfloat16, device=torch.device("cpu"), quantization="nf4")


_ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_steps": 2,
    "save_strategy": "no",
}


@pytest.fixture
def trl_trainer(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Any]:
    """TRL's own trainer of an objective, on four examples in one batch; keyword arguments go to its config."""

    def build(objective: str, model: Any, *, peft_config: Any = None, rows: Any = None, **changes: Any) -> Any:
        config, trainer = TRL[objective]
        off = {"bf16": False, "activation_checkpointing": False, "gradient_checkpointing": None}
        return trainer(
            model=model,
            args=config(str(tmp_path), **{**_ARGUMENTS, **off, "per_device_train_batch_size": 4, **changes}),
            train_dataset=Dataset.from_list(rows or examples(objective)),
            processing_class=tiny_tokenizer,
            peft_config=peft_config,
        )

    return build


@pytest.fixture
def plain_trainer(tmp_path: Path) -> Callable[..., Any]:
    """transformers' Trainer on four equal rows, two a step; keyword arguments go to its TrainingArguments."""
    ids = IDS_BT[0].tolist()
    rows = [{"input_ids": ids, "labels": ids}] * 4

    def build(model: Any, **changes: Any) -> Any:
        batch = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
        arguments = TrainingArguments(**{"output_dir": str(tmp_path), **_ARGUMENTS, **batch, **changes})
        return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)

    return build
