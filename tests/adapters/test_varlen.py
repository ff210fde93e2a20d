"""Packed rows see themselves alone: the same logits and gradients as row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from incremental_llm.adapters import varlen

ROWS = [[5, 9, 2, 40, 77, 3], [8, 8], [1, 19, 4, 60, 61, 62, 63, 9, 12]]


@pytest.fixture
def packed(tiny_model: Any) -> Any:
    varlen.register()
    tiny_model.set_attn_implementation(varlen.NAME)
    return tiny_model


def test_a_line_of_rows_gives_what_each_row_gives(packed: Any) -> None:
    lengths = [len(row) for row in ROWS]
    line = torch.tensor([[token for row in ROWS for token in row]])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    embedded = packed.get_input_embeddings()(line).detach().requires_grad_()
    together = packed(
        inputs_embeds=embedded, position_ids=positions, use_cache=False, **varlen.bounds(lengths, line.device)
    )
    (gradient,) = torch.autograd.grad(together.logits.square().sum(), embedded)
    packed.set_attn_implementation("eager")
    start = 0
    for row, length in zip(ROWS, lengths, strict=True):
        alone = packed.get_input_embeddings()(torch.tensor([row])).detach().requires_grad_()
        logits = packed(inputs_embeds=alone, use_cache=False).logits
        torch.testing.assert_close(together.logits[0, start : start + length], logits[0], rtol=1e-4, atol=1e-4)
        (own,) = torch.autograd.grad(logits.square().sum(), alone)
        torch.testing.assert_close(gradient[0, start : start + length], own[0], rtol=1e-3, atol=1e-3)
        start += length


def test_without_bounds_it_is_plain_causal_attention(packed: Any) -> None:
    ids = torch.tensor([ROWS[0], ROWS[0][::-1]])
    found = packed(ids, use_cache=False).logits
    packed.set_attn_implementation("eager")
    torch.testing.assert_close(found, packed(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_the_kernel_needs_a_gpu_and_16_bits() -> None:
    assert not varlen.usable(torch.device("cpu"), torch.bfloat16)
    assert not varlen.usable(torch.device("cuda"), torch.float32)
