"""Log-probabilities of completions, computed at labelled positions only.

Shapes: B rows, T tokens, N labelled positions of the whole batch, V vocabulary, D hidden size.

A 49,152-token head over every position costs more than the 135M body under it; completions are a quarter of the
positions. Every chat of a batch begins with the same system prompt, a third of a short chat's tokens. And chats of
different lengths are padded to the longest, another third. `attach_labelled_head` therefore teaches a causal language
model's forward one more argument. With it, rows are packed behind one another into lines that begin with what all rows
have in common, where each token sees that beginning and its own row only, and the head runs at labelled positions only:
the same result, all inside the (possibly distributed) wrapper's own forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from incremental_llm.errors import TrainingError
from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows

_LINE = 320  # tokens; longer lines repeat the common beginning less often, but attention grows with their length
_CHECKED = 8  # tokens of each part of the rows that `_check_head` compares


def attach_labelled_head(model: Any) -> None:
    """Let `model(input_ids=ids_BT, labelled_BT=mask)` return logits_NV at the mask's positions, in row-major order.

    Checked against the model's own forward at once, so an architecture whose head does more than a matrix product and
    a soft cap is refused instead of trained wrongly.

    Raises:
        TrainingError: the labelled logits differ from the model's own.
    """
    original = model.forward
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def forward(self: Any, *args: Any, labelled_BT: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labelled_BT is None:
            return original(*args, **kwargs)
        hidden_ND = labelled_hidden(self.base_model, kwargs["input_ids"], labelled_BT)
        return CausalLMOutput(logits=head_logits(self, hidden_ND, softcap))

    model.forward = MethodType(forward, model)
    _check_head(model, original)


def labelled_hidden(body: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> torch.Tensor:
    """hidden_ND of the labelled positions, in row-major order; rows are padded on the right.

    The rows' common beginning is computed once a line, and what follows a row's last label not at all.
    """
    at_BT, inputs = arrange(body, ids_BT, labelled_BT)
    return body(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[at_BT[labelled_BT]]


def arrange(body: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(at_BT, inputs): what to give `body`, and the flat place of each token in it, up to its row's last label."""
    if ids_BT.shape[0] == 1 or not sees_everything(body):
        return torch.arange(ids_BT.numel(), device=ids_BT.device).view_as(ids_BT), {"input_ids": ids_BT}
    shared = common_prefix(ids_BT, labelled_BT)
    at_BT, ids_LT, positions_LT, mask_L1TT = lay_out(pack(labelled_BT, shared), ids_BT, shared, body.dtype)
    return at_BT, {"input_ids": ids_LT, "position_ids": positions_LT, "attention_mask": mask_L1TT}


def sees_everything(body: Any) -> bool:
    """Whether every layer attends to the whole text through an ordinary mask, so that rows can share a line."""
    config = body.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = all(kind == "full_attention" for kind in kinds) if kinds else getattr(config, "sliding_window", None) is None
    return full and config._attn_implementation in {"eager", "sdpa"}


def pack(labelled_BT: torch.Tensor, shared: int) -> list[list[tuple[int, int]]]:
    """Lines of (row, length from `shared` to its last label): longest rows first, each to the line with most room."""
    last_B = labelled_BT.shape[1] - labelled_BT.int().flip(1).argmax(1) - shared
    lengths = [(int(n), row) for row, (n, any_) in enumerate(zip(last_B, labelled_BT.any(1), strict=True)) if any_]
    room = max([_LINE - shared, *(length for length, _ in lengths)])
    filled = [0] * math.ceil(sum(length for length, _ in lengths) / room)
    lines: list[list[tuple[int, int]]] = [[] for _ in filled]
    for length, row in sorted(lengths, key=lambda entry: (-entry[0], entry[1])):
        place = filled.index(min(filled))
        filled[place] += length
        lines[place].append((row, length))
    return lines


def lay_out(
    lines: list[list[tuple[int, int]]], ids_BT: torch.Tensor, shared: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lines as a batch: at_BT (flat place of each token in it), ids_LT, positions_LT, and the additive mask_L1TT.

    Every line begins with the `shared` tokens. A token sees those and its own row, up to itself.
    """
    device, width = ids_BT.device, shared + max(sum(length for _, length in line) for line in lines)
    at_BT = torch.zeros_like(ids_BT)
    ids_LT = ids_BT.new_zeros(len(lines), width)
    positions_LT = ids_BT.new_zeros(len(lines), width)
    owner_LT = ids_BT.new_full((len(lines), width), -1)
    ids_LT[:, :shared] = ids_BT[0, :shared]
    positions_LT[:, :shared] = torch.arange(shared, device=device)
    for number, line in enumerate(lines):
        start = shared
        for row, length in line:
            place = slice(start, start + length)
            ids_LT[number, place] = ids_BT[row, shared : shared + length]
            positions_LT[number, place] = torch.arange(shared, shared + length, device=device)
            owner_LT[number, place] = row
            at_BT[row, :shared] = torch.arange(shared, device=device) + number * width
            at_BT[row, shared : shared + length] = torch.arange(length, device=device) + number * width + start
            start += length
    seen_LTT = owner_LT[:, :, None] == owner_LT[:, None, :]
    seen_LTT[:, :, :shared] = True
    mask_LTT = torch.zeros(seen_LTT.shape, dtype=dtype, device=device)
    mask_LTT.masked_fill_(~seen_LTT.tril(), torch.finfo(dtype).min)
    return at_BT, ids_LT, positions_LT, mask_LTT[:, None]


def common_prefix(ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> int:
    """How many leading tokens all rows have in common, none of them labelled."""
    differs_T = (ids_BT != ids_BT[:1]).any(0) | labelled_BT.any(0)
    return int(differs_T.int().argmax()) if differs_T.any() else 0


def head_logits(model: Any, hidden_ND: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """logits_NV of final hidden states, by the model's own output embedding."""
    logits_NV: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap


@torch.no_grad()
def _check_head(model: Any, original: Any) -> None:
    device = model.get_output_embeddings().weight.device
    # Ordinary tokens from all over the vocabulary: the first few are special ones, on which bf16 is chaotic.
    start = torch.arange(1, 1 + _CHECKED, device=device)
    ids_BT = torch.stack([torch.cat([start, start + _CHECKED * row]) for row in (1, 2, 3)])
    ids_BT *= max(1, model.config.get_text_config().vocab_size // (5 * _CHECKED))
    labelled_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, length in enumerate((_CHECKED, 3, 4)):
        labelled_BT[row, _CHECKED : _CHECKED + length] = True
    expected_NV = original(input_ids=ids_BT, use_cache=False).logits[labelled_BT].float()
    found_NV = model(input_ids=ids_BT, labelled_BT=labelled_BT).logits.float()
    gap = (expected_NV - found_NV).abs().max().item()
    rounding = 5e-2 if model.dtype != torch.float32 else 1e-4
    if not gap <= rounding * max(1.0, expected_NV.abs().max().item()):
        raise TrainingError(
            f"{type(model).__name__}: the logits of the labelled head differ from the model's own by {gap:.3g}. "
            "This architecture scales its logits or masks its attention in an unsupported way: use another base model."
        )


def next_token_logps(logits_NV: torch.Tensor, ids_BT: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """logps_N of the token that follows each scored position, in row-major order; fp32 log-softmax, nats."""
    targets_N = ids_BT.roll(-1, dims=1)[scored_BT]
    return torch.log_softmax(logits_NV.float(), dim=-1).gather(-1, targets_N[:, None]).squeeze(-1)


def sum_by_row(values_N: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """sums_B of per-position values, by the row each position belongs to."""
    rows_N = scored_BT.nonzero()[:, 0]
    return values_N.new_zeros(scored_BT.shape[0]).index_add(0, rows_N, values_N)


def row_logps(model: Any, ids_BT: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """logps_B: the summed log-probability (nats, at most 0) of each row's completion."""
    logits_NV = model(input_ids=ids_BT, labelled_BT=scored_BT).logits
    return sum_by_row(next_token_logps(logits_NV, ids_BT, scored_BT), scored_BT)


@torch.no_grad()
def completion_logps(model: Any, rows: Sequence[Row], autocast: Any) -> list[float]:
    """Summed log-probabilities of `rows` in their order, without gradients, in length-sorted chunks."""
    device = next(model.parameters()).device
    found: dict[int, float] = {}
    for chunk in length_sorted_chunks(rows):
        ids_BT, scored_BT = pad_rows([rows[i] for i in chunk])
        with autocast():
            logps_B = row_logps(model, ids_BT.to(device), scored_BT.to(device))
        found.update(zip(chunk, logps_B.float().tolist(), strict=True))
    return [found[index] for index in range(len(rows))]
