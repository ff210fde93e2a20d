"""llama.cpp itself runs what is exported, and computes what the stack computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from incremental_llm.adapters.lora import LoraAdapter
from incremental_llm.adapters.merge import merge_into
from incremental_llm.chat import as_dicts
from incremental_llm.handoff import PROBES, export
from incremental_llm.handoff.llamacpp.adapter import write_adapter_gguf
from incremental_llm.handoff.llamacpp.model import write_model

QUERY = "model.layers.1.self_attn.q_proj"

TEXTS = (
    "How long?  It's 30 days, isn't it?\n\n\tThey'LL say 12345.67 — naïve café 東京 🙂 <|im_end|>x",
    " leading  spaces   and\r\nlines\n \n end ",
    "x=3;y==1004//don't",
)


@pytest.fixture(scope="module")
def exported(case: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack merged, its base, and its adapter, all in fp32."""
    folder = tmp_path_factory.mktemp("gguf")
    export(case.source, folder / "merged", "gguf")
    export(case.source, folder / "lora", "gguf-lora")
    plain = AutoModelForCausalLM.from_pretrained(case.base)
    base = case.stack.model_copy(update={"adapters": ()})
    export(replace(case.source, stack=base, adapter_folders=(), reference=plain), folder / "base", "gguf")
    return folder


@pytest.fixture(params=["merged", "base and adapter"])
def served(request: pytest.FixtureRequest, exported: Path, serve: Any) -> Any:
    if request.param == "merged":
        return serve(exported / "merged/model.gguf")
    return serve(exported / "base/model.gguf", exported / "lora/adapter.gguf")


def prompts(tokenizer: Any) -> list[list[int]]:
    options = {"add_generation_prompt": True, "return_dict": True}
    return [tokenizer.apply_chat_template(as_dicts(probe), **options)["input_ids"] for probe in PROBES]


@torch.no_grad()
def test_llamacpp_computes_the_stacks_probabilities(served: Any, case: Any, tiny_tokenizer: Any) -> None:
    for ids in prompts(tiny_tokenizer):
        expected = case.reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(served.log_probabilities(ids, len(expected)), expected, atol=1e-4, rtol=0)


def test_llamacpp_gives_the_stacks_greedy_answers(served: Any, case: Any, tiny_tokenizer: Any) -> None:
    for ids in prompts(tiny_tokenizer):
        asked = torch.tensor([ids])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        answer = case.reference.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **options)
        assert served.greedy(ids, 12) == answer[0, len(ids) :].tolist()


def test_the_base_alone_answers_otherwise(exported: Path, serve: Any, case: Any, tiny_tokenizer: Any) -> None:
    """So that an adapter that is loaded and ignored could not pass."""
    ids = prompts(tiny_tokenizer)[0]
    base, both = (
        serve(exported / "base/model.gguf"),
        serve(exported / "base/model.gguf", exported / "lora/adapter.gguf"),
    )
    assert (base.log_probabilities(ids, 320) - both.log_probabilities(ids, 320)).abs().max() > 0.1


def test_llamacpp_writes_conversations_as_transformers_does(served: Any, tiny_tokenizer: Any) -> None:
    for probe in PROBES:
        expected = tiny_tokenizer.apply_chat_template(as_dicts(probe), add_generation_prompt=True, tokenize=False)
        assert served.templated(as_dicts(probe)) == expected
        assert served.tokenize(expected) == tiny_tokenizer(expected).input_ids


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_llamacpp_runs_the_other_architectures(
    name: str, tmp_path: Path, tiny_model_dir: Path, serve: Any, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    write_model(tmp_path / "m.gguf", model, tiny_model_dir, dtype="float32", name="tiny")
    adapter = LoraAdapter({}, {QUERY: (torch.randn(2, 32), torch.randn(32, 2))}, {QUERY: 0.2})
    write_adapter_gguf(tmp_path / "a.gguf", adapter, model.config, dtype="float32", name="a")
    ids = torch.arange(3, 300)
    for lora in (None, tmp_path / "a.gguf"):
        if lora:
            merge_into(model, [adapter])
        expected = model(ids[None]).logits[0, -1].log_softmax(-1)
        found = serve(tmp_path / "m.gguf", lora).log_probabilities(ids.tolist(), len(expected))
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_llamacpp_splits_text_as_each_known_tokenizer_does(
    splitting: tuple[str, Any], tmp_path: Path, tiny_model: Any, serve: Any
) -> None:
    """Trained on the very texts, so that merges across a wrong split would show."""
    _, pre_tokenizer = splitting
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    size, special = tiny_model.config.vocab_size, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[1], eos_token=special[2])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "t")
    write_model(tmp_path / "m.gguf", tiny_model, tmp_path / "t", dtype="float32", name="tiny")
    served = serve(tmp_path / "m.gguf")
    for text in TEXTS:
        assert served.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids
