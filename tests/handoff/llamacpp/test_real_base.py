"""The demo's base model in llama.cpp: merged, and as base and adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from incremental_llm.adapters.load import load_base, load_stack, load_tokenizer
from incremental_llm.adapters.lora import write_adapter
from incremental_llm.adapters.stack import Stack
from incremental_llm.artifacts import folder_digest
from incremental_llm.base_models import ResolvedBase, resolve
from incremental_llm.chat import as_dicts
from incremental_llm.handoff import PROBES, Source, export

TOKENS = 8
ASKED = (PROBES[0], PROBES[-1])


def random_adapter(base: ResolvedBase, folder: Path, seed: int) -> Path:
    """Rank 8 on every linear layer but the head; each delta has 3 % of its weight's norm."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, layer in load_base(base.folder, dtype=torch.float32).named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            A_RI = torch.randn(8, layer.in_features, generator=generator)
            B_OR = torch.randn(layer.out_features, 8, generator=generator)
            modules[name] = (A_RI, B_OR * 0.03 * layer.weight.norm() / (B_OR @ A_RI).norm())
    write_adapter(folder, modules, base.ref.name)
    return folder


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    asked = torch.tensor([ids])
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer: list[int] = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **options)[0].tolist()
    return answer[len(ids) :]


@pytest.mark.real
@pytest.mark.slow
def test_llamacpp_answers_as_the_stack_does(tmp_path: Path, serve: Any) -> None:
    base = resolve("smollm2-135m")
    tokenizer = load_tokenizer(base.folder)
    folders = tuple(random_adapter(base, tmp_path / f"a{seed}", seed) for seed in (1, 2))
    stack = Stack(base=base.ref, adapters=tuple(map(folder_digest, folders)), dtype="float32")
    reference = load_stack(base.folder, folders, dtype=torch.float32)
    source = Source(stack, folders, base.folder, reference, probes=ASKED)
    export(source, tmp_path / "merged", "gguf")
    export(source, tmp_path / "lora", "gguf-lora")
    plain = load_base(base.folder, dtype=torch.float32)
    bare = replace(source, stack=stack.model_copy(update={"adapters": ()}), adapter_folders=(), reference=plain)
    export(bare, tmp_path / "base", "gguf", dtype="bfloat16")  # which holds the base's own weights
    prompts = [
        tokenizer.apply_chat_template(as_dicts(probe), add_generation_prompt=True, return_dict=True)["input_ids"]
        for probe in ASKED
    ]
    expected = [greedy(reference, ids) for ids in prompts]
    assert expected != [greedy(plain, ids) for ids in prompts]
    merged = serve(tmp_path / "merged/model.gguf")
    assert [merged.greedy(ids, TOKENS) for ids in prompts] == expected
    template = tokenizer.apply_chat_template(as_dicts(PROBES[-1]), add_generation_prompt=True, tokenize=False)
    assert merged.templated(as_dicts(PROBES[-1])) == template
    assert merged.tokenize(template) == prompts[-1]
    both = serve(tmp_path / "base/model.gguf", tmp_path / "lora/adapter.gguf")
    for ids, answer in zip(prompts, expected, strict=True):
        with torch.no_grad():
            wanted_V = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        found_V = both.log_probabilities(ids, len(wanted_V))
        likely = wanted_V.topk(20).indices
        torch.testing.assert_close(found_V[likely], wanted_V[likely], atol=0.1, rtol=0)  # bfloat16 activations there
        assert both.greedy(ids, TOKENS)[0] == answer[0]
