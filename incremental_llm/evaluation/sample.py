"""Users' turns as a model expects them: sampled from the chat template's beginning of one (Magpie, Xu et al. 2024).

Shapes: B rows, V vocabulary.

The one design fact: random numbers come from one generator on the CPU, in the order of the rows, so a seed gives the
same turns wherever the logits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from incremental_llm.adapters.chat_tokens import special_ids, user_turn_ids
from incremental_llm.chat import Conversation
from incremental_llm.evaluation.generate import (
    Progress,
    decode,
    default_batch_tokens,
    evaluating,
    most_likely,
    stop_ids,
)


@torch.inference_mode()
def sampled_turns(
    model: Any,
    tokenizer: Any,
    before: Conversation,
    count: int,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    progress: Progress | None = None,
) -> list[str | None]:
    """`count` turns of a user behind the messages `before`; None for one that has not ended by `max_new_tokens`.

    A turn ends with any special token: which one ends a user's turn is the template's business.

    Raises:
        InputError: the template does not show where a user's turn begins.
    """
    prompt = user_turn_ids(tokenizer, before)
    device = next(model.parameters()).device
    stops = torch.tensor(sorted(stop_ids(model, tokenizer) | special_ids(tokenizer)), device=device)
    pick = nucleus(temperature, top_p, torch.Generator().manual_seed(seed))
    size = max(1, default_batch_tokens(model) // (len(prompt) + max_new_tokens))
    turns: list[str | None] = []
    while len(turns) < count:
        rows = [prompt] * min(size, count - len(turns))
        with evaluating(model):
            sampled = decode(model, None, 0, rows, stops, max_new_tokens, pick)
        for ids in sampled:
            ended = ids is not None and len(ids) < max_new_tokens
            turns.append(tokenizer.decode(ids).strip() if ended else None)
        if progress is not None:
            progress(len(turns), count)
    return turns


def nucleus(
    temperature: float, top_p: float, generator: torch.Generator
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Sample from the most likely tokens that together have `top_p` (Holtzman et al. 2020); always the first of them.

    Returns:
        What `decode` takes: the highest logit_B, and the token_B.
    """

    def pick(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logit_B, _ = most_likely(logits_BV)
        finite_BV = torch.nan_to_num(logits_BV.float(), nan=0.0).cpu()  # such a row is given up, but has to be drawn
        p_BV, token_BV = torch.softmax(finite_BV / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
        before_BV = p_BV.cumsum(dim=-1) - p_BV
        p_BV = p_BV.masked_fill(before_BV >= top_p, 0.0)
        drawn_B1 = torch.multinomial(p_BV, 1, generator=generator)
        return logit_B, token_BV.gather(-1, drawn_B1)[:, 0].to(logits_BV.device)

    return pick
