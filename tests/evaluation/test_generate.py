"""Batches, padding, a shared prefix and rows that leave early change nothing: the answers are those of one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.adapters import varlen
from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.chat import Conversation, Message
from incremental_llm.errors import IncrementalError
from incremental_llm.evaluation import generate as module
from incremental_llm.evaluation.generate import (
    completion_logps,
    generate,
    greedy_answers,
    length_sorted_batches,
    stop_ids,
)

torch = pytest.importorskip("torch")

SYSTEM = "You answer for the shop."
QUESTIONS = ("hi", "How long does shipping take?", "return?", "What is the capital of France, and why?", "the 30 days")


def conversations(system: str = "") -> list[Conversation]:
    head = (Message(role="system", content=system),) if system else ()
    return [(*head, Message(role="user", content=f"{text} {n}")) for n in range(2) for text in QUESTIONS]


def greedy_one(model: Any, tokenizer: Any, conversation: Conversation, max_new_tokens: int) -> str:
    """The plainest greedy decoding: the whole sequence again for each token, no cache."""
    ids = prompt_ids(tokenizer, conversation)
    start = len(ids)
    for _ in range(max_new_tokens):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def ending(model: Any, tokenizer: Any) -> Any:
    """The model with an end token that is likely enough for some answers to be short and others not."""
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.eos_token_id] = 2.7
    inner = model.lm_head.forward
    model.lm_head.forward = lambda hidden: inner(hidden) + bias
    return model


@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_answers_are_those_of_one_by_one(tiny_model: Any, tiny_tokenizer: Any, system: str, batch_tokens: int) -> None:
    model, asked = ending(tiny_model, tiny_tokenizer), conversations(system)
    with torch.inference_mode():
        expected = [greedy_one(model, tiny_tokenizer, c, 10) for c in asked]
    found = generate(model, tiny_tokenizer, asked, max_new_tokens=10, batch_tokens=batch_tokens)
    assert [answer.text for answer in found] == expected
    lengths = {answer.tokens for answer in found}
    assert min(lengths) < 10 and max(lengths) == 10, "the model should end some answers early, and not all"


def test_answers_agree_with_the_librarys_generate(tiny_model: Any, tiny_tokenizer: Any) -> None:
    asked = conversations(SYSTEM)[:3]
    for conversation, answer in zip(
        asked, greedy_answers(tiny_model, tiny_tokenizer, asked, max_new_tokens=8), strict=True
    ):
        ids = torch.tensor([prompt_ids(tiny_tokenizer, conversation)])
        mask = torch.ones_like(ids)
        out = tiny_model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        assert tiny_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer


def test_no_prefix_is_shared_with_sliding_attention(tiny_model: Any, tiny_tokenizer: Any) -> None:
    asked = conversations(SYSTEM)[:4]
    expected = greedy_answers(tiny_model, tiny_tokenizer, asked, max_new_tokens=6)
    tiny_model.config.layer_types = ["sliding_attention", "full_attention"]
    assert not module._shares_prefix(tiny_model)
    del tiny_model.config.layer_types
    assert module._shares_prefix(tiny_model)
    assert greedy_answers(tiny_model, tiny_tokenizer, asked[:1], max_new_tokens=6) == expected[:1]


def test_a_model_that_packs_its_rows_in_training_answers_padded_ones(tiny_model: Any, tiny_tokenizer: Any) -> None:
    asked = conversations(SYSTEM)[:4]
    pairs = [(conversation, "It is here.") for conversation in asked]
    expected = greedy_answers(tiny_model, tiny_tokenizer, asked, max_new_tokens=6)
    logps = [found.logp for found in completion_logps(tiny_model, tiny_tokenizer, pairs)]
    varlen.register()
    tiny_model.set_attn_implementation(varlen.NAME)  # what a GPU trains with: it knows no mask
    assert greedy_answers(tiny_model, tiny_tokenizer, asked, max_new_tokens=6) == expected
    assert [f.logp for f in completion_logps(tiny_model, tiny_tokenizer, pairs)] == pytest.approx(logps, abs=1e-3)
    assert tiny_model.config._attn_implementation == varlen.NAME


def test_identical_and_single_prompts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    one = conversations(SYSTEM)[0]
    answer = greedy_answers(tiny_model, tiny_tokenizer, [one], max_new_tokens=5)
    assert greedy_answers(tiny_model, tiny_tokenizer, [one] * 3, max_new_tokens=5) == answer * 3
    assert greedy_answers(tiny_model, tiny_tokenizer, [], max_new_tokens=5) == []


def test_progress_counts_up_to_the_total(tiny_model: Any, tiny_tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        tiny_model,
        tiny_tokenizer,
        conversations(),
        max_new_tokens=3,
        batch_tokens=300,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == (10, 10)


def test_the_mode_is_given_back(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model.train()
    greedy_answers(tiny_model, tiny_tokenizer, conversations()[:1], max_new_tokens=2)
    assert tiny_model.training


def test_non_finite_logits_are_a_problem_of_their_row(tiny_model: Any, tiny_tokenizer: Any) -> None:
    asked = conversations()[:3]
    mark = max(prompt_ids(tiny_tokenizer, asked[1]), key=lambda t: (t not in prompt_ids(tiny_tokenizer, asked[0]), t))
    expected = greedy_answers(tiny_model, tiny_tokenizer, asked[:1], max_new_tokens=2)
    inner = tiny_model.model.embed_tokens.forward
    tiny_model.model.embed_tokens.forward = lambda ids: inner(ids).masked_fill((ids == mark)[..., None], float("nan"))
    found = generate(tiny_model, tiny_tokenizer, asked[:2], max_new_tokens=2)
    assert (found[0].text, found[0].problem) == (expected[0], "")
    assert found[1].problem == "the model's logits are not finite"
    with pytest.raises(IncrementalError, match="conversation 1 has no answer: the model's logits are not finite"):
        greedy_answers(tiny_model, tiny_tokenizer, asked[:2], max_new_tokens=2)
    scored = completion_logps(tiny_model, tiny_tokenizer, [(c, "x") for c in asked[:2]])
    assert [bool(row.problem) for row in scored] == [False, True]


def test_prompts_beyond_the_context_are_not_measured(tiny_model: Any, tiny_tokenizer: Any) -> None:
    long = (Message(role="user", content="the " * 600),)
    found = generate(tiny_model, tiny_tokenizer, [long, conversations()[0]], max_new_tokens=2)
    assert "the model's context holds 512" in found[0].problem and not found[1].problem
    assert completion_logps(tiny_model, tiny_tokenizer, [(long, "x")])[0].problem


@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize("batch_tokens", [1, 400, 100_000])
def test_logps_are_those_of_the_whole_sequence(
    tiny_model: Any, tiny_tokenizer: Any, system: str, batch_tokens: int
) -> None:
    replies = ("It takes three days.", "x", "", "no\n\n")
    pairs = [(c, replies[n % 4]) for n, c in enumerate(conversations(system))]
    found = completion_logps(tiny_model, tiny_tokenizer, pairs, batch_tokens=batch_tokens)
    for (conversation, reply), row in zip(pairs, found, strict=True):
        prompt, completion = (
            prompt_ids(tiny_tokenizer, conversation),
            completion_ids(tiny_tokenizer, conversation, reply),
        )
        with torch.inference_mode():
            logits = tiny_model(torch.tensor([prompt + completion]), use_cache=False).logits[0]
        logps = torch.log_softmax(logits, dim=-1)
        expected = sum(float(logps[len(prompt) - 1 + n, token]) for n, token in enumerate(completion))
        assert row.logp == pytest.approx(expected, abs=1e-3)
        assert row.tokens == len(completion)


def test_a_peft_model_is_measured_with_its_adapter(tiny_model: Any, tiny_tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    asked = conversations(SYSTEM)[:4]
    bare = completion_logps(tiny_model, tiny_tokenizer, [(c, "yes") for c in asked])
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(tiny_model, config).eval()
    with torch.inference_mode():
        expected = [greedy_one(wrapped, tiny_tokenizer, c, 6) for c in asked]
    assert greedy_answers(wrapped, tiny_tokenizer, asked, max_new_tokens=6) == expected
    assert completion_logps(wrapped, tiny_tokenizer, [(c, "yes") for c in asked]) != bare


def test_stops_are_the_templates_and_the_models(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model.generation_config.eos_token_id = [0, tiny_tokenizer.eos_token_id]
    assert stop_ids(tiny_model, tiny_tokenizer) == {0, tiny_tokenizer.eos_token_id}


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_every_row_is_in_one_batch_within_the_bound(lengths: list[int], bound: int) -> None:
    batches = list(length_sorted_batches(lengths, range(len(lengths)), bound))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= bound
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat)
