"""Greedy answers and log-likelihoods in batches, fast enough for two CPU cores.

Shapes: B rows, T tokens of a row with its padding, P tokens of the shared prefix, V vocabulary.

The one design fact: conversations that begin with the same system prompt share its keys and values. The common
beginning of all prompts runs once and is repeated over the batch; the rest of each prompt is padded on the left behind
it. Mask and positions make that the same computation as row by row: in fp32 the answers are those of one-by-one greedy
decoding. In bf16 a near tie may fall the other way, so `evaluate` batches each suite alone and in one fixed order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from incremental_llm.adapters import varlen
from incremental_llm.adapters.chat_tokens import completion_ids, end_of_turn_id, prompt_ids
from incremental_llm.adapters.kv_cache import CACHE
from incremental_llm.chat import Conversation
from incremental_llm.errors import IncrementalError

Progress = Callable[[int, int], None]

# 200 replies on a CPU took 8.8 GB and 26 s in whole batches, 1.8 GB and 17 s in eighths.
_SCORED_PART = 8
_MINIMUM_PREFIX = 8  # below this, repeating the cache costs more than it saves
_COMPACT_AT = 0.9  # finished rows leave a batch once this share of it, or less, is still open


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text, the number of tokens generated, and why it could not be measured (empty if it was).

    One with as many tokens as it may have has not ended.
    """

    text: str
    tokens: int
    problem: str = ""


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a completion in nats (at most 0), its token count, and why it could not be measured."""

    logp: float
    tokens: int
    problem: str = ""


def greedy_answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The greedy answer to each conversation, stripped, in the order given; cut after `max_new_tokens` tokens.

    Raises:
        IncrementalError: an answer could not be measured (non-finite logits, a prompt beyond the model's context).
    """
    answers = generate(
        model, tokenizer, conversations, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, progress=progress
    )
    for index, answer in enumerate(answers):
        if answer.problem:
            raise IncrementalError(f"conversation {index} has no answer: {answer.problem}.")
    return [answer.text for answer in answers]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Greedy answers in the order given; what cannot be answered carries its problem instead of raising.

    `batch_tokens` bounds rows times the longest row (prompt and answer) of a batch; `progress(done, total)` is called
    after each batch.
    """
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=_device(model))
    found = {i: Answer("", 0, problem) for i, problem in _too_long(model, lengths).items()}
    rest = [index for index in range(len(prompts)) if index not in found]
    prefix = _common_prefix([prompts[index] for index in rest]) if _shares_prefix(model) else []
    with evaluating(model):
        shared = _prefix_cache(model, prefix) if prefix else None
        for batch in length_sorted_batches(lengths, rest, batch_tokens or default_batch_tokens(model)):
            rows = [prompts[index][len(prefix) :] for index in batch]
            decoded = decode(model, shared, len(prefix), rows, stops, max_new_tokens)
            found.update((index, _answer(tokenizer, ids)) for index, ids in zip(batch, decoded, strict=True))
            if progress is not None:
                progress(len(found), len(prompts))
    return [found[index] for index in range(len(prompts))]


@torch.inference_mode()
def completion_logps(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[Conversation, str]],
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """Log-likelihood of each (prompt, completion), end-of-turn token included, in the order given; fp32 log-softmax.

    Rows are padded on the left, so completions end together and the head runs only on as many last positions as the
    batch's longest completion has.
    """
    prompts = [prompt_ids(tokenizer, conversation) for conversation, _ in pairs]
    completions = [completion_ids(tokenizer, conversation, text) for conversation, text in pairs]
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    found = {i: Likelihood(0.0, 0, problem) for i, problem in _too_long(model, lengths).items()}
    rest = [index for index in range(len(pairs)) if index not in found]
    prefix = _common_prefix([prompts[index] for index in rest]) if _shares_prefix(model) else []
    with evaluating(model):
        shared = _prefix_cache(model, prefix) if prefix else None
        for batch in length_sorted_batches(lengths, rest, batch_tokens or default_batch_tokens(model) // _SCORED_PART):
            rows = [prompts[index][len(prefix) :] + completions[index] for index in batch]
            logps = _score(model, shared, len(prefix), rows, [completions[index] for index in batch])
            found.update((i, _likelihood(logp, len(completions[i]))) for i, logp in zip(batch, logps, strict=True))
            if progress is not None:
                progress(len(found), len(pairs))
    return [found[index] for index in range(len(pairs))]


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the template's end of turn, and the model's own end-of-sequence tokens."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ids = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, *listed}
    return frozenset(index for index in ids if index is not None)


def default_batch_tokens(model: Any) -> int:
    """Tokens a batch may hold: what keeps two CPU cores busy without a large cache, or a GPU out of launch overhead."""
    return 65_536 if _device(model).type == "cuda" else 8_192


def length_sorted_batches(lengths: Sequence[int], rows: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """`rows` (indices into `lengths`) by length, in batches with rows times longest row at most `batch_tokens`.

    Every row is in exactly one batch; a row longer than the bound has a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(rows, key=lambda row: (lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def most_likely(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest logit of each row (of a row with a NaN, NaN) and its token."""
    logit_B, next_B = logits_BV.max(dim=-1)
    return logit_B, next_B


def decode(
    model: Any,
    shared: Any,
    prefix: int,
    rows: Sequence[Sequence[int]],
    stops: torch.Tensor,
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = most_likely,
) -> list[list[int] | None]:
    """New token ids of each row without the stop token; None for a row whose logits were not finite.

    `pick` chooses from logits_BV: a logit_B that is not finite where any of the row is not, and the next token_B.
    """
    cache = _repeated(shared, len(rows)) if shared is not None else DynamicCache(config=model.config)
    ids_BT, mask_BT, positions_BT = _left_padded(rows, prefix, _device(model))
    answers: list[list[int] | None] = [[] for _ in rows]
    alive = list(range(len(rows)))  # the row of `answers` behind each row of the batch, or -1 once it has finished
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=_last(1, ids_BT),
            **{CACHE: cache},
        )
        logit_B, next_B = pick(output.logits[:, -1])
        ended = torch.isin(next_B, stops).tolist()
        finite = torch.isfinite(logit_B).tolist()
        for place, token in enumerate(next_B.tolist()):
            row = alive[place]
            answer = answers[row] if row >= 0 else None
            if answer is None:
                continue
            if not finite[place]:
                answers[row] = None
            elif not ended[place]:
                answer.append(token)
                continue
            alive[place] = -1
        open_rows = [place for place, row in enumerate(alive) if row >= 0]
        if not open_rows or step + 1 == max_new_tokens:
            break
        ids_BT, positions_BT = next_B[:, None], positions_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
        if len(open_rows) <= _COMPACT_AT * len(alive):
            keep = torch.tensor(open_rows, device=ids_BT.device)
            cache.batch_select_indices(keep)
            ids_BT, positions_BT, mask_BT = ids_BT[keep], positions_BT[keep], mask_BT[keep]
            alive = [alive[place] for place in open_rows]
    return answers


def _score(
    model: Any, shared: Any, prefix: int, rows: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Summed log-probability of the completion that ends each row; NaN where the logits are not finite."""
    ids_BT, mask_BT, positions_BT = _left_padded(rows, prefix, _device(model))
    longest = max(len(completion) for completion in completions)
    logits_BTV = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        use_cache=shared is not None,
        logits_to_keep=_last(longest + 1, ids_BT),
        **{CACHE: _repeated(shared, len(rows)) if shared is not None else None},
    ).logits
    sums = []
    for row, completion in enumerate(completions):  # row by row: fp32 logits of the whole batch would be the peak
        targets_T = ids_BT[row, -len(completion) :]
        logps_TV = torch.log_softmax(logits_BTV[row, -len(completion) - 1 : -1].float(), dim=-1)
        sums.append(logps_TV.gather(-1, targets_T[:, None]).sum().item())
    return sums


def _last(count: int, ids_BT: torch.Tensor) -> torch.Tensor:
    """The last `count` positions of a row, as indices.

    A number would slice the batch into a view, which the head then multiplies with one copy of its weights a row:
    measured on a CPU, half of the time of an evaluation and most of its memory.
    """
    return torch.arange(max(0, ids_BT.shape[1] - count), ids_BT.shape[1], device=ids_BT.device)


def _left_padded(
    rows: Sequence[Sequence[int]], prefix: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_BT padded on the left, mask over prefix and row (1 for a real token), and the row's positions_BT."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = [[1] * prefix + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
    mask_BT = torch.tensor(mask, device=device)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, prefix:]
    return ids_BT, mask_BT, positions_BT


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Tokens that all prompts begin with, leaving each at least one of its own; empty if too few to be worth it."""
    if len(prompts) < 2:
        return []
    first, last = min(prompts), max(prompts)  # what the extremes of a sorted list share, all share
    shortest = min(len(prompt) for prompt in prompts) - 1
    length = 0
    while length < shortest and first[length] == last[length]:
        length += 1
    return first[:length] if length >= _MINIMUM_PREFIX else []


def _shares_prefix(model: Any) -> bool:
    """Whether padding may stand between prefix and rest: not where attention counts distance in the cache itself."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None


def _prefix_cache(model: Any, prefix: list[int]) -> Any:
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([prefix], device=_device(model)), use_cache=True, logits_to_keep=1, **{CACHE: cache})
    return cache


def _repeated(shared: Any, rows: int) -> Any:
    cache = copy.deepcopy(shared)
    cache.batch_repeat_interleave(rows)
    return cache


def _answer(tokenizer: Any, ids: list[int] | None) -> Answer:
    if ids is None:
        return Answer("", 0, "the model's logits are not finite")
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids))


def _likelihood(logp: float, tokens: int) -> Likelihood:
    finite = logp == logp and logp != float("-inf")
    return Likelihood(logp, tokens) if finite else Likelihood(0.0, 0, "the model's logits are not finite")


def _too_long(model: Any, lengths: Sequence[int]) -> dict[int, str]:
    """Problems of rows that do not fit the model's context: they would be computed, but on positions never trained."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return {
        index: f"prompt and answer need {length} tokens, the model's context holds {context}"
        for index, length in enumerate(lengths)
        if context is not None and length > context
    }


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode (no dropout) and an attention that knows padding inside, what was before it afterwards."""
    training, attention = model.training, model.config.get_text_config()._attn_implementation
    model.eval()
    if attention == varlen.NAME:  # a model in training packs its rows; here they are padded
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.train(training)
        if attention == varlen.NAME:
            model.set_attn_implementation(attention)
