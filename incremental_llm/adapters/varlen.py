"""Attention over rows packed behind one another into one line, each seeing itself alone: no padding, no mask.

Shapes: H heads, T tokens of the line, D size of a head, S rows.

transformers takes any attention function that is registered by name. `varlen` hands packed rows to torch's own kernel
(torch.nn.attention.varlen, FlashAttention inside), which needs a GPU and 16 bits; elsewhere the same is computed row by
row, so that what is tested on a CPU is what the kernel is asked for.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "varlen"


def register() -> None:
    """Make `attn_implementation="varlen"` known to transformers.

    A name without a mask function gets no mask: rows are told apart by their bounds, and padding stands behind them.
    """
    AttentionInterface.register(NAME, attend)


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's kernel runs here: on CUDA, in 16 bits, in a torch that has it."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


def bounds(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """The keyword arguments of a forward that say where rows of these lengths begin and end in the line."""
    ends_S = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends_S, "max_length_q": max(lengths)}


def attend(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of the line; without bounds, every sequence of the batch is a row.

    Returns:
        The output as 1 x T x H x D, and no weights.
    """
    if cu_seq_lens_q is None:
        out_BHTD = _causal(query_1HTD, key_1HTD, value_1HTD, scaling)
        return out_BHTD.transpose(1, 2).contiguous(), None
    if not usable(query_1HTD.device, query_1HTD.dtype):
        ends = cu_seq_lens_q.tolist()
        rows = [slice(start, end) for start, end in itertools.pairwise(ends)]
        parts = [_causal(query_1HTD[:, :, r], key_1HTD[:, :, r], value_1HTD[:, :, r], scaling) for r in rows]
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
    from torch.nn.attention.varlen import varlen_attn

    query_THD, key_THD, value_THD = (x[0].transpose(0, 1).contiguous() for x in (query_1HTD, key_1HTD, value_1HTD))
    out_THD = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query_THD.shape[1] != key_THD.shape[1],
    )
    return out_THD[None], None


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=query.shape[2] > 1,  # a single token, generated, sees all keys before it
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
