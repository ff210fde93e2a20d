"""Log-probabilities of completions, computed at labelled positions only.

Shapes: B rows, T tokens, N labelled positions of the whole batch, V vocabulary, D hidden size.

A 49,152-token head over every position costs more than the 135M body under it; completions are a quarter of the
positions. And every chat of a batch begins with the same system prompt, a third of a short chat's tokens.
`attach_labelled_head` therefore teaches a causal language model's forward one more argument: with it, the common
beginning runs once for the whole batch (its keys and values are shared, gradients included, so the result is the same),
and the head runs at labelled positions only, all inside the (possibly distributed) wrapper's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from incremental_llm.errors import TrainingError
from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows

_WORTH_SHARING = 8  # tokens; below this a second, small pass costs more than it saves


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
    """hidden_ND of the labelled positions, in row-major order; the rows' common beginning is computed once."""
    shared = common_prefix(ids_BT, labelled_BT)
    if shared < _WORTH_SHARING or ids_BT.shape[0] == 1:
        hidden_BTD = body(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTD[labelled_BT]
    cache = body(input_ids=ids_BT[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(ids_BT.shape[0])
    hidden_BTD = body(input_ids=ids_BT[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state
    return hidden_BTD[labelled_BT[:, shared:]]


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
    start = torch.arange(4, 4 + _WORTH_SHARING, device=device)
    ids_BT = torch.stack([torch.cat([start, start + 3]), torch.cat([start, start + 5])])
    ids_BT %= model.config.get_text_config().vocab_size
    labelled_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    labelled_BT[:, _WORTH_SHARING:] = True
    expected_NV = original(input_ids=ids_BT, use_cache=False).logits[labelled_BT].float()
    found_NV = model(input_ids=ids_BT, labelled_BT=labelled_BT).logits.float()
    gap = (expected_NV - found_NV).abs().max().item()
    rounding = 5e-2 if model.dtype != torch.float32 else 1e-4
    if not gap <= rounding * max(1.0, expected_NV.abs().max().item()):
        raise TrainingError(
            f"{type(model).__name__}: the logits of the labelled head differ from the model's own by {gap:.3g}. "
            "This architecture scales its logits or shares its cache in an unsupported way: use another base model."
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
