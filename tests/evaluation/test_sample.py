"""Users' turns that a model writes: the same for a seed, ended by the template's own token, from the likely tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from incremental_llm.chat import Message

torch = pytest.importorskip("torch")

from incremental_llm.evaluation.sample import nucleus, sampled_turns  # noqa: E402 - it imports torch

HOW: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.5, "top_p": 1.0}


def test_a_seed_gives_the_same_turns_and_some_have_not_ended(tiny_model: Any, tiny_tokenizer: Any) -> None:
    seen: list[int] = []
    first, again, other = (
        sampled_turns(tiny_model, tiny_tokenizer, (), 24, seed=seed, progress=lambda done, _: seen.append(done), **HOW)
        for seed in (3, 3, 4)
    )
    assert first == again != other and seen == [24] * 3
    ended = [turn for turn in first if turn is not None]
    assert 0 < len(ended) < 24
    assert not any("<|im_end|>" in turn for turn in ended)


def test_what_stands_before_the_turn_decides_it_too(tiny_model: Any, tiny_tokenizer: Any) -> None:
    before = (Message(role="system", content="You answer for the shop."),)
    plain, with_system = (sampled_turns(tiny_model, tiny_tokenizer, b, 6, seed=0, **HOW) for b in ((), before))
    assert plain != with_system


def test_a_small_share_of_the_probability_is_greedy_and_a_nan_row_has_no_turn(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    one, two = (sampled_turns(tiny_model, tiny_tokenizer, (), 2, seed=s, **HOW | {"top_p": 1e-6}) for s in (0, 1))
    assert one == two and one[0] == one[1]
    torch.nn.init.constant_(tiny_model.model.norm.weight, float("nan"))
    assert sampled_turns(tiny_model, tiny_tokenizer, (), 2, seed=0, **HOW) == [None, None]


def test_tokens_are_drawn_with_their_share_of_the_most_likely() -> None:
    logits_BV = torch.log(torch.tensor([[0.5, 0.05, 0.3, 0.15]])).repeat(4000, 1)
    _, token_B = nucleus(1.0, 0.75, torch.Generator().manual_seed(0))(logits_BV)
    counts = Counter(token_B.tolist())
    assert set(counts) == {0, 2}  # the first that reach three quarters
    assert counts[0] / 4000 == pytest.approx(0.625, abs=0.03)
