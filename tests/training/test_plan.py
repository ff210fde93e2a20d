"""What a plan says of replayed rows: which pairs are settled, and what is held to the previous policy."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from incremental_llm.config import parse_config
from incremental_llm.errors import ConfigError
from incremental_llm.training.batching import tokenize
from incremental_llm.training.plan import margin, plan_phase
from incremental_llm.training.regularizers.memory import ReplayMemory
from incremental_llm.training.scoring import attach_labelled_head, completion_logps

from .conftest import examples_of, settings_of


def planned(tiny_model: Any, tokenizer: Any, threshold: float, replayed: list[str], **memory: Any) -> tuple[Any, Any]:
    attach_labelled_head(tiny_model)
    told = settings_of("dpo")
    phase = told.phases[0].model_copy(update={"settled_margin": threshold})
    told = told.model_copy(update={"phases": (phase,)})
    kinds = {"pair": [tokenize(tokenizer, example) for example in examples_of("pair")]}
    held = ReplayMemory(**{"kl_weight": 0.0, "top_k": None, "dark_weight": 0.0, "dark": {}} | memory)
    plan = plan_phase(told.phases[0], kinds, tiny_model, contextlib.nullcontext, told, lambda *_: None, replayed, held)
    return plan, held


def test_a_replayed_pair_is_settled_where_production_prefers_it_clearly(tiny_model: Any, tiny_tokenizer: Any) -> None:
    pairs = [tokenize(tiny_tokenizer, example) for example in examples_of("pair")]
    attach_labelled_head(tiny_model)
    margins = {
        pair.id: margin(pair, *completion_logps(tiny_model, pair.rows, contextlib.nullcontext)) for pair in pairs
    }
    threshold = sorted(margins.values())[5]
    old = [pair.id for pair in pairs[:8]]
    plan, held = planned(tiny_model, tiny_tokenizer, threshold, old)
    settled = {name for name in old if margins[name] >= threshold and name in plan.reached}
    assert plan.settled == settled
    assert 0 < len(settled) < len(old)
    assert len(held) == len(plan.reached & set(old))
    by_prompt = {tuple(pair.rows[0].prompt): pair.id for pair in pairs}
    for row in plan.rows:
        name = by_prompt[tuple(row["prompt_ids"])]
        own = next(pair.weight for pair in pairs if pair.id == name)
        if name in settled:
            assert (row["rejected_ids"], row["weight"]) == ([], 0.0)
        else:
            assert row["rejected_ids"] and row["weight"] == own
        if name in old:
            assert (row["nll_weight"], row["kl"]) == (own, own) and row["held"] >= 0
        else:
            assert (row["nll_weight"], row["held"], row["kl"]) == (0.0, -1, 0.0)


def test_a_new_pair_is_never_settled(tiny_model: Any, tiny_tokenizer: Any) -> None:
    plan, held = planned(tiny_model, tiny_tokenizer, 0.0, [])
    assert not plan.settled and not len(held)


def test_downs_are_held_to_nothing(tiny_model: Any, tiny_tokenizer: Any) -> None:
    attach_labelled_head(tiny_model)
    told = settings_of("kto")
    kinds = {"unpaired": [tokenize(tiny_tokenizer, example) for example in examples_of("unpaired")]}
    held = ReplayMemory(kl_weight=1.0, top_k=None, dark_weight=0.0, dark={})
    names = [example.id for example in examples_of("unpaired")]
    plan = plan_phase(told.phases[0], kinds, tiny_model, contextlib.nullcontext, told, lambda *_: None, names, held)
    assert all((row["held"] >= 0) == row["desirable"] for row in plan.rows)


def test_a_margin_takes_the_lengths_out(tiny_tokenizer: Any) -> None:
    pair = tokenize(tiny_tokenizer, examples_of("pair")[0])
    chosen, rejected = (len(row.completion) for row in pair.rows)
    assert margin(pair, -0.5 * chosen, -0.5 * rejected) == pytest.approx(0)
    assert margin(pair, -0.5 * chosen, -2.0 * rejected) == pytest.approx(1.5)


def test_robust_without_a_share_of_turned_pairs_is_refused() -> None:
    phase = {"objective": "dpo", "learning_rate": 1e-4, "epochs": 1, "loss": "robust"}
    with pytest.raises(ConfigError, match="expected label_smoothing above 0"):
        parse_config({"training": {"phases": [phase]}}, source="test")


@pytest.mark.parametrize("seed", range(12))
def test_downs_weigh_no_more_than_ups_however_often_each_comes(seed: int, tiny_model: Any, tiny_tokenizer: Any) -> None:
    attach_labelled_head(tiny_model)
    thumbs = examples_of("unpaired")
    few = [e for e in thumbs if e.desirable][:3] + [e for e in thumbs if not e.desirable][:3]
    told = settings_of("kto", seed=seed)
    told = told.model_copy(update={"phases": (told.phases[0].model_copy(update={"batch_size": 8}),)})
    kinds = {"unpaired": [tokenize(tiny_tokenizer, example) for example in few]}
    plan = plan_phase(told.phases[0], kinds, tiny_model, contextlib.nullcontext, told, lambda *_: None)
    ups, downs = (sum(row["weight"] for row in plan.rows if row["desirable"] is up) for up in (True, False))
    assert len(plan.rows) == 8 and 0 < downs <= ups + 1e-9


@pytest.mark.parametrize(("objective", "key"), [("dpo", "prompt_dropout"), ("sft", "nll"), ("kto", "settled_margin")])
def test_a_key_that_the_objective_does_not_know_is_refused(objective: str, key: str) -> None:
    phase = {"objective": objective, "learning_rate": 1e-3, "epochs": 1, key: 0.3}
    with pytest.raises(ConfigError, match=f"expected {key} with objective .* only, .* found 0.3 with {objective}"):
        parse_config({"base": "b", "training": {"phases": [phase]}}, source="the test")
