"""Merging adapters: exact where it says exact, refused where it would be wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from incremental_llm.adapters.lora import LoraAdapter, delta, read_adapter, write_adapter
from incremental_llm.adapters.merge import concatenate, merge_into, merged, padded, reduce_rank
from incremental_llm.errors import InputError, IntegrityError

CONFIGS = (
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}},
)
IDS_BT = torch.tensor([[5, 9, 2, 40, 77, 3]])


def random_adapter(shapes: dict[str, tuple[int, int, int]], scaling: float = 1.0, seed: int = 0) -> LoraAdapter:
    """An adapter with Gaussian factors for {module: (O, I, R)}."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: (torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator))
        for name, (o, i, r) in shapes.items()
    }
    return LoraAdapter({}, modules, dict.fromkeys(modules, scaling))


@pytest.fixture
def stack(tiny_model: Any, tmp_path: Path) -> tuple[list[LoraAdapter], Any]:
    """Three adapters saved by PEFT (ranks, targets and scalings differ), and a PEFT model that applies all of them."""
    model = None
    generator = torch.Generator().manual_seed(1)
    for i, options in enumerate(CONFIGS):
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        if model is None:
            model = get_peft_model(copy.deepcopy(tiny_model), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
        for name, parameter in model.named_parameters():
            if f".a{i}." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path, selected_adapters=[f"a{i}"])
    assert model is not None
    model.base_model.set_adapter([f"a{i}" for i in range(len(CONFIGS))])
    return [read_adapter(tmp_path / f"a{i}") for i in range(len(CONFIGS))], model.eval()


def test_concatenated_and_merged_equal_the_stack_that_peft_applies(
    stack: tuple[list[LoraAdapter], Any], tiny_model: Any
) -> None:
    adapters, peft_model = stack
    with torch.no_grad():
        expected = peft_model(IDS_BT).logits
        plain = tiny_model(IDS_BT).logits
        one = copy.deepcopy(tiny_model)
        merge_into(one, [concatenate(adapters)])
        merge_into(tiny_model, adapters)
        torch.testing.assert_close(one(IDS_BT).logits, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(tiny_model(IDS_BT).logits, expected, atol=1e-4, rtol=0)
    assert (expected - plain).abs().max() > 0.1  # the adapters do something


def test_a_concatenated_adapter_has_the_sum_of_ranks_of_those_that_have_the_module(
    stack: tuple[list[LoraAdapter], Any],
) -> None:
    one = concatenate(stack[0])
    assert one.ranks["model.layers.0.self_attn.q_proj"] == 4 + 2 + 5
    assert one.ranks["model.layers.1.mlp.down_proj"] == 4 + 3
    assert one.ranks["model.layers.1.mlp.up_proj"] == 2
    assert set(one.scaling.values()) == {1.0}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.floats(-4, 4), st.booleans()), min_size=1, max_size=4))
def test_the_delta_of_a_concatenation_is_the_sum_of_deltas(parts: list[tuple[int, float, bool]]) -> None:
    adapters = [
        random_adapter({"x": (6, 7, rank)} | ({"y": (3, 4, rank)} if more else {}), scaling, seed)
        for seed, (rank, scaling, more) in enumerate(parts)
    ]
    one = concatenate(adapters)
    for name in one.modules:
        total = sum(delta(a, name) for a in adapters if name in a.modules)
        torch.testing.assert_close(delta(one, name), total, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(delta(padded(one, 32), name), delta(one, name), atol=1e-6, rtol=1e-6)


def test_a_concatenation_with_mixed_ranks_survives_the_disk(tmp_path: Path) -> None:
    one = concatenate([random_adapter({"x": (6, 7, 2)}, 0.5), random_adapter({"x": (6, 7, 3), "y": (4, 4, 1)}, 2.0, 1)])
    write_adapter(tmp_path, one.modules, "tiny")
    again = read_adapter(tmp_path)
    assert again.ranks == {"x": 5, "y": 1}
    assert all(torch.equal(delta(again, name), delta(one, name)) for name in one.modules)


def test_merging_rounds_once_to_the_dtype_of_the_weight() -> None:
    adapters = [random_adapter({"x": (6, 7, 2)}, 1e-3, seed) for seed in range(8)]
    weights = {"x.weight": torch.randn(6, 7, generator=torch.Generator().manual_seed(9)).bfloat16()}
    before = weights["x.weight"].clone()
    exact = before.double() + sum(delta(a, "x").double() for a in adapters)
    result = merged(weights, adapters)
    assert torch.equal(result["x.weight"], exact.bfloat16())
    assert torch.equal(weights["x.weight"], before)


def test_merging_shares_what_no_adapter_touches() -> None:
    weights = {"x.weight": torch.zeros(6, 7), "x.bias": torch.zeros(6)}
    result = merged(weights, [random_adapter({"x": (6, 7, 2)})])
    assert result["x.bias"] is weights["x.bias"] and result.keys() == weights.keys()


def test_no_adapters_is_an_error() -> None:
    for refused in (lambda: concatenate([]), lambda: merged({"x.weight": torch.zeros(2, 2)}, [])):
        with pytest.raises(InputError, match="at least one adapter"):
            refused()


def test_what_cannot_be_merged_is_refused_by_name() -> None:
    adapter = random_adapter({"x": (6, 7, 2)})
    with pytest.raises(InputError, match="x: expected this module in the base"):
        merged({"y.weight": torch.zeros(6, 7)}, [adapter])
    with pytest.raises(InputError, match="another base"):
        merged({"x.weight": torch.zeros(7, 6)}, [adapter])
    with pytest.raises(InputError, match=r"uint8.*Quantised"):
        merged({"x.weight": torch.zeros(21, 1, dtype=torch.uint8)}, [adapter])
    with pytest.raises(InputError, match="different bases"):
        concatenate([adapter, random_adapter({"x": (6, 8, 2)})])


def test_a_tied_weight_is_not_merged_by_accident(tiny_model: Any) -> None:
    vocabulary, hidden = tiny_model.lm_head.weight.shape
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    adapter = random_adapter({"lm_head": (vocabulary, hidden, 2), "model.layers.0.mlp.up_proj": (64, 32, 2)})
    with pytest.raises(InputError, match=r"lm_head.*tied to model\.embed_tokens"):
        merge_into(tiny_model, [adapter])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


def test_an_overflow_is_refused_and_leaves_the_model_alone() -> None:
    model = torch.nn.ModuleDict({"x": torch.nn.Linear(7, 6, bias=False, dtype=torch.float16)})
    before = model["x"].weight.clone()
    with pytest.raises(IntegrityError, match="x: expected finite"):
        merge_into(model, [random_adapter({"x": (6, 7, 2)}, 1e6)])
    assert torch.equal(model["x"].weight, before)


def test_reducing_to_the_full_rank_is_exact() -> None:
    adapter = concatenate([random_adapter({"x": (6, 7, 2)}), random_adapter({"x": (6, 7, 3)}, 0.3, 1)])
    same, error = reduce_rank(adapter, 5)
    assert error.relative_error == 0.0 and torch.equal(delta(same, "x"), delta(adapter, "x"))


def test_a_rank_above_the_matrix_loses_nothing_when_reduced_to_the_matrix() -> None:
    adapter = concatenate([random_adapter({"x": (6, 7, 5)}, 1.0, seed) for seed in range(4)])
    small, error = reduce_rank(adapter, 6)
    assert small.ranks == {"x": 6} and error.relative_error == 0.0
    torch.testing.assert_close(delta(small, "x"), delta(adapter, "x"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_reducing_is_optimal_and_reports_its_error(rank: int) -> None:
    adapter = random_adapter({"x": (12, 9, 6), "y": (8, 8, 6)}, 0.7)
    small, error = reduce_rank(adapter, rank)
    lost = whole = 0.0
    for name in adapter.modules:
        full = delta(adapter, name).double()
        singular = torch.linalg.svdvals(full)
        measured = float((full - delta(small, name).double()).norm() / full.norm())
        assert error.modules[name] == pytest.approx(measured, abs=1e-5)
        assert measured == pytest.approx(float(singular[rank:].norm() / singular.norm()), abs=1e-5)
        lost, whole = lost + float(singular[rank:].square().sum()), whole + float(singular.square().sum())
    assert error.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)


def test_an_adapter_that_does_nothing_reduces_without_error() -> None:
    zero = LoraAdapter({}, {"x": (torch.ones(3, 4), torch.zeros(5, 3))}, {"x": 1.0})
    small, error = reduce_rank(zero, 1)
    assert error.relative_error == 0.0 and not delta(small, "x").any()


def test_impossible_ranks_are_refused() -> None:
    adapter = random_adapter({"x": (6, 7, 4)})
    with pytest.raises(InputError, match="at least 1"):
        reduce_rank(adapter, 0)
    with pytest.raises(InputError, match="at most 2, found 4"):
        padded(adapter, 2)
