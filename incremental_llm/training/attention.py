"""Causal attention for training on a CPU: half of what eager attention computes, since nothing looks ahead.

Shapes: B lines, H heads, K heads of keys and values, G = H / K, T queries, S keys, D size of a head.

Measured (one thread, fp32, 9 heads of 64 on 3 of keys, forward and backward of a layer): two lines of 499 tokens take
31 ms, with eager attention 55 ms, with sdpa 50 ms; one line of 215 tokens 4.1 ms, 5.8 ms, 5.7 ms.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

CAUSAL_BLOCKS = "incremental_llm_causal_blocks"

_BLOCK = 64  # queries; in larger blocks more is computed and masked, smaller ones are more calls

AttentionInterface.register(CAUSAL_BLOCKS, lambda *args, **kwargs: (causal_blocks(*args, **kwargs), None))
AttentionMaskInterface.register(CAUSAL_BLOCKS, eager_mask)


def causal_blocks(
    _module: Any,
    q_BHTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSD: torch.Tensor,
    mask_B1TS: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_other: Any,
) -> torch.Tensor:
    """Attention in blocks of queries, each over the keys up to its own last one; BTHD, contiguous.

    `mask_B1TS` is added to the scores and must hide what comes after a query: most of that is never looked at. Heads
    that share keys are one matrix, so keys and values are not copied for each of them.
    """
    (batch, heads, queries, size), (kv_heads, keys) = q_BHTD.shape, k_BKSD.shape[1:3]
    group = heads // kv_heads
    q_BKGTD = (q_BHTD * scaling).view(batch, kv_heads, group, queries, size)
    found = []
    for start in range(0, queries, _BLOCK):
        end = min(start + _BLOCK, queries)
        seen = keys - queries + end
        rows = group * (end - start)
        q_BKND = q_BKGTD[:, :, :, start:end].reshape(batch, kv_heads, rows, size)
        scores_BKNS = q_BKND @ k_BKSD[:, :, :seen].transpose(2, 3)
        scores_BKGTS = scores_BKNS.view(batch, kv_heads, group, end - start, seen)
        scores_BKGTS = scores_BKGTS + mask_B1TS[:, :, None, start:end, :seen]
        share_BKGTS = torch.softmax(scores_BKGTS, dim=-1, dtype=torch.float32).to(q_BHTD.dtype)
        share_BKGTS = torch.nn.functional.dropout(share_BKGTS, dropout)
        found.append((share_BKGTS.view(batch, kv_heads, rows, seen) @ v_BKSD[:, :, :seen]).view(batch, heads, -1, size))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous()
