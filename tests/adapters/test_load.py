"""Loading a base in 4 bits: what trains and what serves is one kernel, with gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# Upstream's own, by its message: bitsandbytes looks at torch.jit while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@pytest.fixture
def wider_model_dir(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A random Llama of width 128: 4-bit blocks are 64 weights long."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_4_bit_base_gives_the_same_in_evaluation_and_with_gradients(wider_model_dir: Path) -> None:
    import torch

    from incremental_llm.adapters.load import load_base

    cpu = torch.device("cpu")
    model = load_base(wider_model_dir, dtype=torch.bfloat16, device=cpu, quantization="nf4")
    ids_BT = torch.arange(3, 15)[None]
    with torch.no_grad():
        before_BTV = model(input_ids=ids_BT).logits
    inputs_BTH = model.get_input_embeddings()(ids_BT).detach().requires_grad_()
    model.train()
    during_BTV = model(inputs_embeds=inputs_BTH).logits
    during_BTV.sum().backward()
    model.eval()
    with torch.no_grad():
        after_BTV = model(input_ids=ids_BT).logits
    assert torch.equal(before_BTV, during_BTV.detach())
    assert torch.equal(before_BTV, after_BTV)
    assert inputs_BTH.grad is not None and inputs_BTH.grad.abs().sum() > 0
