"""An adapter that starts in the null space of everyday inputs moves their outputs less, and others' as before."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from incremental_llm.training import null_space
from incremental_llm.training.batching import Row
from incremental_llm.training.null_space import input_products, start_in_null_space

EVERYDAY = [Row((5, 6, 7, 8), (9, 10)), Row((5, 6, 11), (12, 13, 14)), Row((5, 6, 7), (15,))]


@pytest.fixture
def adapted(tiny_model: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny_model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))


def layers_of(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def let_through(model: Any, ids: list[list[int]]) -> dict[str, float]:
    """How long A x is on average for the inputs that these texts give each layer, in lengths of x."""
    found: dict[str, list[torch.Tensor]] = {}

    def read(name: str, module: Any) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            x_ND = torch.nn.functional.normalize(inputs[0].flatten(0, -2), dim=-1)
            found.setdefault(name, []).append((x_ND @ module.lora_A["default"].weight.T).norm(dim=-1))

        return hook

    handles = [m.register_forward_pre_hook(read(n, m)) for n, m in layers_of(model).items()]
    with torch.no_grad():
        for text in ids:
            model(input_ids=torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(lengths).mean().item() for name, lengths in found.items()}


def test_everyday_inputs_pass_damped_and_the_norm_stays(adapted: Any) -> None:
    texts = [[*row.prompt, *row.completion] for row in EVERYDAY]
    before = let_through(adapted, texts)
    norms = {name: layer.lora_A["default"].weight.norm().item() for name, layer in layers_of(adapted).items()}
    start_in_null_space(adapted, EVERYDAY, 0.01, contextlib.nullcontext)
    after = let_through(adapted, texts)
    assert len(after) == len(norms) > 5
    for name, layer in layers_of(adapted).items():
        assert after[name] < 0.7 * before[name], name
        assert layer.lora_A["default"].weight.norm().item() == pytest.approx(norms[name], rel=1e-4)


def test_the_solution_is_that_of_the_formula_without_padding(adapted: Any) -> None:
    layer = next(m for n, m in layers_of(adapted).items() if n.endswith("down_proj"))
    A_RD = layer.lora_A["default"].weight.detach().clone()
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, given: inputs.append(given[0].detach()[0]))
    with torch.no_grad(), adapted.disable_adapter():
        for row in EVERYDAY:
            adapted(input_ids=torch.tensor([[*row.prompt, *row.completion]]))
    handle.remove()
    x_ND = torch.nn.functional.normalize(torch.cat(inputs), dim=-1)
    C_DD = x_ND.T @ x_ND
    damped_DD = C_DD + 0.1 * C_DD.trace() / len(C_DD) * torch.eye(len(C_DD))
    expected_RD = A_RD @ torch.linalg.inv(damped_DD)
    start_in_null_space(adapted, EVERYDAY, 0.1, contextlib.nullcontext)
    found_RD = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(found_RD, expected_RD * (A_RD.norm() / expected_RD.norm()), rtol=1e-3, atol=1e-5)


def test_autocast_does_not_round_the_products(adapted: Any) -> None:
    """In bf16 the sum over some hundred tokens loses what rare directions add: the start is then another one."""
    rows = [Row(tuple(range(5, 25)), tuple(range(30, 40 + i))) for i in range(20)]
    layers = layers_of(adapted)
    with torch.no_grad():
        products = list(input_products(adapted, layers, rows, lambda: torch.autocast("cpu", dtype=torch.bfloat16)))
    for _layer, C_DD in products:  # every x has length 1, so the trace counts tokens
        assert C_DD.dtype == torch.float32
        assert C_DD.trace().item() == pytest.approx(sum(row.length for row in rows), rel=1e-5)


@pytest.mark.parametrize("held", [1, 30_000])
def test_few_products_at_a_time_are_the_same_products(adapted: Any, monkeypatch: Any, held: int) -> None:
    layers = layers_of(adapted)
    whole = list(input_products(adapted, layers, EVERYDAY, contextlib.nullcontext))
    passes: list[int] = []
    once = null_space._products
    monkeypatch.setattr(null_space, "HELD_BYTES", held)
    monkeypatch.setattr(null_space, "_products", lambda *given: passes.append(len(given[1])) or once(*given))
    parts = list(input_products(adapted, layers, EVERYDAY, contextlib.nullcontext))
    assert sum(passes) == len(layers) and (max(passes) == 1 if held == 1 else 1 < max(passes) < len(layers))
    for (layer, C_DD), (again, part_DD) in zip(whole, parts, strict=True):
        assert layer is again
        torch.testing.assert_close(C_DD, part_DD)


def test_layers_that_read_one_tensor_are_turned_alike(adapted: Any) -> None:
    for layer in layers_of(adapted).values():
        torch.nn.init.ones_(layer.lora_A["default"].weight)
    start_in_null_space(adapted, EVERYDAY, 0.1, contextlib.nullcontext)
    by_name = layers_of(adapted)
    query = next(name for name in by_name if name.endswith("q_proj"))
    turned = [
        by_name[query.replace("q_proj", part)].lora_A["default"].weight for part in ("q_proj", "k_proj", "v_proj")
    ]
    assert torch.equal(turned[0], turned[1]) and torch.equal(turned[0], turned[2])
    other = by_name[query.replace("q_proj", "o_proj")].lora_A["default"].weight
    assert not torch.allclose(turned[0], other)
