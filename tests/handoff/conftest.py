"""A stack on disk, for every form it can be exported in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.artifacts import folder_digest
from incremental_llm.handoff import PROBES, Source

CPU = torch.device("cpu")
CONFIGS = (
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}},
)


@dataclass(frozen=True)
class Case:
    """A stack on disk and PEFT's own model that applies all its adapters at once, as the reference."""

    stack: Stack
    folders: tuple[Path, ...]
    base: Path
    reference: Any

    @property
    def source(self) -> Source:
        """What every export takes."""
        return Source(self.stack, self.folders, self.base, self.reference, probes=PROBES[-2:], device=CPU)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of 32 numbers gain nothing from threads, and waiting for them costs seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three random adapters: ranks and targets differ, one is rsLoRA, one has a rank pattern."""
    tmp_path = tmp_path_factory.mktemp("stack")
    tiny_model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = None
    generator = torch.Generator().manual_seed(1)
    for i, options in enumerate(CONFIGS):
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        if model is None:
            model = get_peft_model(tiny_model, config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
        for name, parameter in model.named_parameters():
            if f".a{i}." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path / "adapters", selected_adapters=[f"a{i}"])
    assert model is not None
    model.base_model.set_adapter([f"a{i}" for i in range(len(CONFIGS))])
    folders = tuple(tmp_path / "adapters" / f"a{i}" for i in range(len(CONFIGS)))
    base = BaseRef(name="tiny", digest="b" * 64, template_digest="t" * 64)
    stack = Stack(base=base, adapters=tuple(map(folder_digest, folders)), dtype="float32")
    return Case(stack, folders, tiny_model_dir, model.eval())
