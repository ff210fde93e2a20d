"""Log-probabilities of completions, computed at labelled positions only.

Shapes: B rows, T tokens, N labelled positions of the whole batch, V vocabulary, D hidden size.

A 49,152-token head over every position costs more than the 135M body under it; completions are a quarter of the
positions. Every chat of a batch begins with the same system prompt, a third of a short chat's tokens. And chats of
different lengths are padded to the longest, another third. The two answers of a pair have a whole prompt in common.
`attach_labelled_head` therefore teaches a causal language model's forward one more argument. With it, rows are packed
into lines as trees: what rows begin with in common stands there once, each token sees what leads to it only, and the
head runs at labelled positions only: the same result, all inside the (possibly distributed) wrapper's own forward.
On a GPU, rows stand behind one another in one line, each for itself: nothing is padded, and nothing is shared.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from incremental_llm.adapters import varlen
from incremental_llm.adapters.sharding import sharding
from incremental_llm.errors import TrainingError
from incremental_llm.training.attention import CAUSAL_BLOCKS
from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows

Tokens = tuple[int, ...]

_LINE = 320  # tokens; longer lines repeat the common beginning less often, but attention grows with their length
_OPEN = 2**31 - 1  # where a branch ends that runs to the end of its line
_CHECKED = 8  # tokens of each part of the rows that are compared with the model's own forward


def attach_labelled_head(model: Any) -> None:
    """Let `model(input_ids=ids_BT, labelled_BT=mask)` return logits_NV at the mask's positions, in row-major order.

    Checked against the model's own forward at once, so an architecture whose head does more than a matrix product and
    a soft cap is refused instead of trained wrongly. Eager attention, which a CPU trains with, is replaced by half of
    it where the results are the same.

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
    ids_BT, labelled_BT = _sample(model)
    with torch.no_grad():
        expected_NV = original(input_ids=ids_BT, use_cache=False).logits[labelled_BT].float()
    own, faster = model.config.get_text_config()._attn_implementation, _faster_attention(model)
    if faster is not None:
        model.set_attn_implementation(faster)
        if not _gap(model, ids_BT, labelled_BT, expected_NV) <= _tolerance(model, expected_NV):
            model.set_attn_implementation(own)  # it has scores of its own: soft caps, sinks
    gap = _gap(model, ids_BT, labelled_BT, expected_NV)
    if not gap <= _tolerance(model, expected_NV):
        raise TrainingError(
            f"{type(model).__name__}: the logits of the labelled head differ from the model's own by {gap:.3g}. "
            "This architecture scales its logits or masks its attention in an unsupported way: use another base model."
        )


def _faster_attention(model: Any) -> str | None:
    """What to train with in place of the model's own attention: blocks on a CPU, rows without padding on a GPU."""
    if not sees_everything(model):
        return None
    if varlen.usable(next(model.parameters()).device, model.dtype):
        varlen.register()
        return varlen.NAME
    return CAUSAL_BLOCKS if model.config.get_text_config()._attn_implementation == "eager" else None


def labelled_hidden(body: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> torch.Tensor:
    """hidden_ND of the labelled positions, in row-major order; rows are padded on the right.

    What rows of a line begin with in common is computed once, and what follows a row's last label not at all.
    """
    at_BT, inputs = arrange(body, ids_BT, labelled_BT)
    return body(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[at_BT[labelled_BT]]


def arrange(body: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """(at_BT, inputs): what to give `body`, and the flat place of each token in it, up to its row's last label."""
    if ids_BT.shape[0] == 1 or not sees_everything(body):
        return torch.arange(ids_BT.numel(), device=ids_BT.device).view_as(ids_BT), {"input_ids": ids_BT}
    last_B = labelled_BT.shape[1] - labelled_BT.int().flip(1).argmax(1)
    lengths = (last_B * labelled_BT.any(1)).tolist()
    rows = [tuple(row[:length]) for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    if body.config.get_text_config()._attn_implementation == varlen.NAME:
        return one_line(rows, ids_BT)
    return lay_out(pack(rows), rows, ids_BT, body.dtype)


def sees_everything(body: Any) -> bool:
    """Whether every layer attends to the whole text through an ordinary mask, so that rows can share a line."""
    config = body.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = all(kind == "full_attention" for kind in kinds) if kinds else getattr(config, "sliding_window", None) is None
    return full and config._attn_implementation in {"eager", "sdpa", CAUSAL_BLOCKS, varlen.NAME}


def one_line(rows: Sequence[Tokens], ids_BT: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """(at_BT, inputs): all rows behind one another in one line, each for itself (adapters/varlen.py)."""
    device, lengths = ids_BT.device, [len(row) for row in rows if row]
    line = torch.tensor([token for row in rows for token in row], device=device)[None]
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)[None]
    at_BT, start = torch.zeros(ids_BT.shape, dtype=torch.long), 0
    for index, row in enumerate(rows):
        at_BT[index, : len(row)] = torch.arange(start, start + len(row))
        start += len(row)
    return at_BT.to(device), {"input_ids": line, "position_ids": positions, **varlen.bounds(lengths, device)}


def pack(rows: Sequence[Tokens]) -> list[list[int]]:
    """Lines of indices of `rows`, longest first, each to the line with most room; empty rows are left out.

    Rows with more in common than apart, such as the answers to one prompt, stay together.
    """
    order = sorted((index for index, row in enumerate(rows) if row), key=lambda index: rows[index])
    shared = common(rows[order[0]], rows[order[-1]])
    families = [[order[0]]]
    sizes = [len(rows[order[0]]) - shared]  # tokens behind the shared ones
    for before, index in pairwise(order):
        beginning = common(rows[before], rows[index]) - shared
        own = len(rows[index]) - shared
        if 2 * beginning >= min(own, len(rows[before]) - shared):
            families[-1].append(index)
            sizes[-1] += own - beginning
        else:
            families.append([index])
            sizes.append(own)
    room = max(1, _LINE - shared, *sizes)
    filled = [0] * max(1, math.ceil(sum(sizes) / room))
    lines: list[list[int]] = [[] for _ in filled]
    for size, family in sorted(zip(sizes, families, strict=True), key=lambda entry: (-entry[0], entry[1])):
        place = filled.index(min(filled))
        filled[place] += size
        lines[place] += family
    return lines


def lay_out(
    lines: Sequence[Sequence[int]], rows: Sequence[Tokens], ids_BT: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(at_BT, inputs): lines as a batch for a model's body, and the flat place of each row's tokens in it.

    A line is a tree, depth first: what rows begin with in common stands there once. A token sees what leads to it, up
    to itself: those before it whose branch (`ends_LT`: where it ends) has not ended.
    """
    paths: list[tuple[int, list[int]]] = [(0, [])] * len(rows)
    ids, positions, ends = ([list[int]() for _ in lines] for _ in range(3))
    for number, line in enumerate(lines):
        path: list[int] = []
        before: Tokens = ()
        for index in sorted(line, key=lambda index: rows[index]):
            beginning, end = common(before, rows[index]), len(ids[number])
            for place in path[beginning:]:
                ends[number][place] = end
            path = [*path[:beginning], *range(end, end + len(rows[index]) - beginning)]
            before = rows[index]
            ids[number] += before[beginning:]
            positions[number] += range(beginning, len(before))
            ends[number] += [_OPEN] * (len(before) - beginning)
            paths[index] = (number, path)
    width, device = max(map(len, ids)), ids_BT.device
    at_BT = torch.zeros(ids_BT.shape, dtype=torch.long)
    for index, (number, path) in enumerate(paths):
        at_BT[index, : len(path)] = torch.tensor(path, dtype=torch.long) + number * width
    ids_LT, positions_LT, ends_LT = (
        torch.tensor([line + [fill] * (width - len(line)) for line in part]).to(device)
        for part, fill in ((ids, 0), (positions, 0), (ends, _OPEN))
    )
    seen_LTT = (torch.arange(width, device=device)[:, None] < ends_LT[:, None, :]).tril()
    mask_LTT = torch.zeros(seen_LTT.shape, dtype=dtype, device=device)
    mask_LTT.masked_fill_(~seen_LTT, torch.finfo(dtype).min)
    inputs = {"input_ids": ids_LT, "position_ids": positions_LT, "attention_mask": mask_LTT[:, None]}
    return at_BT.to(device), inputs


def common(one: Tokens, other: Tokens) -> int:
    """How many leading tokens two rows share."""
    limit = min(len(one), len(other))
    return next((place for place in range(limit) if one[place] != other[place]), limit)


def head_logits(model: Any, hidden_ND: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """logits_NV of final hidden states, by the model's own output embedding."""
    logits_NV: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap


def _sample(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT and labelled_BT of three short rows with a common beginning, to compare logits on."""
    device = model.get_output_embeddings().weight.device
    # Ordinary tokens from all over the vocabulary: the first few are special ones, on which bf16 is chaotic.
    start = torch.arange(1, 1 + _CHECKED, device=device)
    ids_BT = torch.stack([torch.cat([start, start + _CHECKED * row]) for row in (1, 2, 3)])
    ids_BT *= max(1, model.config.get_text_config().vocab_size // (5 * _CHECKED))
    labelled_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, length in enumerate((_CHECKED, 3, 4)):
        labelled_BT[row, _CHECKED : _CHECKED + length] = True
    return ids_BT, labelled_BT


@torch.no_grad()
def _gap(model: Any, ids_BT: torch.Tensor, labelled_BT: torch.Tensor, expected_NV: torch.Tensor) -> float:
    found_NV: torch.Tensor = model(input_ids=ids_BT, labelled_BT=labelled_BT).logits.float()
    gap: float = (expected_NV - found_NV).abs().max().item()
    return gap


def _tolerance(model: Any, expected_NV: torch.Tensor) -> float:
    """The rounding of the model's dtype, as a difference of logits."""
    rounding = 5e-2 if model.dtype != torch.float32 else 1e-4
    largest: float = expected_NV.abs().max().item()
    return rounding * max(1.0, largest)


def next_token_logps(logits_NV: torch.Tensor, ids_BT: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """logps_N of the token that follows each scored position, in row-major order; fp32, nats."""
    targets_N = ids_BT.roll(-1, dims=1)[scored_BT]
    logits_NV = logits_NV.float()
    # Not log_softmax: on a CPU it adds 49,152 terms one after another, and is 1e-5 off on average.
    return logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - logits_NV.logsumexp(dim=-1)


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

    def score(chunk: list[int]) -> None:
        ids_BT, scored_BT = pad_rows([rows[i] for i in chunk])
        with autocast():
            logps_B = row_logps(model, ids_BT.to(device), scored_BT.to(device))
        found.update(zip(chunk, logps_B.float().tolist(), strict=True))

    for chunk in length_sorted_chunks(rows):
        as_memory_allows(chunk, score)
    return [found[index] for index in range(len(rows))]


def as_memory_allows(chunk: list[int], run: Callable[[list[int]], None]) -> None:
    """Run a chunk of rows, and where memory runs out its halves, down to single rows.

    Not on a model that is spread over processes: these would no longer run the same passes.
    """
    try:
        run(chunk)
        return
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(chunk) == 1 or sharding():
            raise
    free_memory()  # outside of the handler: the error's traceback holds the activations
    middle = len(chunk) // 2
    for half in (chunk[:middle], chunk[middle:]):
        as_memory_allows(half, run)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA says it by its own class, the CPU's allocator by its words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
