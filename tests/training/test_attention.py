"""Attention in blocks is eager attention: values, gradients, and the models that it is for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.models.llama.modeling_llama import eager_attention_forward  # noqa: E402

from incremental_llm.training import attention  # noqa: E402
from incremental_llm.training.attention import CAUSAL_BLOCKS, causal_blocks  # noqa: E402
from incremental_llm.training.scoring import attach_labelled_head  # noqa: E402


@pytest.mark.parametrize(("queries", "past"), [(1, 0), (64, 0), (65, 0), (200, 0), (1, 80), (70, 30)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4)])
def test_blocks_give_what_eager_attention_gives(queries: int, past: int, heads: int, kv_heads: int) -> None:
    torch.manual_seed(queries)
    keys = past + queries
    q_BHTD, k_BKSD, v_BKSD = (
        torch.randn(2, number, length, 8, requires_grad=True)
        for number, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    )
    hidden_TS = torch.ones(queries, keys).triu(past + 1).bool() | (torch.rand(queries, keys) < 0.2)
    hidden_TS[torch.arange(queries), torch.arange(queries) + past] = False  # a token sees itself
    mask_B1TS = torch.zeros(2, 1, queries, keys).masked_fill(hidden_TS, torch.finfo(torch.float32).min)
    layer = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=True)
    upstream_BTHD = torch.randn(2, queries, heads, 8)
    results = []
    for found in (
        causal_blocks(layer, q_BHTD, k_BKSD, v_BKSD, mask_B1TS, scaling=0.3),
        eager_attention_forward(layer, q_BHTD, k_BKSD, v_BKSD, mask_B1TS, scaling=0.3)[0],
    ):
        results.append((found, *torch.autograd.grad(found, (q_BHTD, k_BKSD, v_BKSD), upstream_BTHD)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def tiny(folder: Any, attention_name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention_name).eval()


@pytest.mark.parametrize(("before", "after"), [("eager", CAUSAL_BLOCKS), ("sdpa", "sdpa")])
def test_eager_attention_is_replaced_and_no_other(before: str, after: str, tiny_model_dir: Any) -> None:
    model = tiny(tiny_model_dir, before)
    ids_BT = torch.randint(4, 300, (2, 150))
    expected = model(input_ids=ids_BT).logits
    attach_labelled_head(model)
    assert model.config._attn_implementation == after
    assert torch.allclose(model(input_ids=ids_BT).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_model_with_scores_of_its_own_keeps_its_attention(
    tiny_model_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "causal_blocks", lambda *args, **kwargs: 0.5 * causal_blocks(*args, **kwargs))
    model = tiny(tiny_model_dir, "eager")
    attach_labelled_head(model)
    assert model.config._attn_implementation == "eager"
