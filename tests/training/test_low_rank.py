"""The fused adapter layer gives PEFT's own outputs and gradients, and leaves alone what it does not cover."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from incremental_llm.training.low_rank import fuse_adapted_linears


class Two(torch.nn.Module):
    """Two linear layers, the second with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(12, 20, bias=False), torch.nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(**lora: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["first", "second"], init_lora_weights=False, **lora)
    return get_peft_model(Two(), config)


def gradients(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    y = model(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_outputs_and_gradients_are_those_of_peft() -> None:
    model = adapted()
    fused = copy.deepcopy(model)
    assert fuse_adapted_linears(fused) == 2
    x = torch.randn(2, 4, 12, requires_grad=True)
    y, expected = gradients(model, x)
    grad_x, x.grad = x.grad, None
    z, found = gradients(fused, x)
    torch.testing.assert_close(z, y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, grad_x, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys() and len(found) == 4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-4)


def test_double_precision_gradients_are_right_by_finite_differences() -> None:
    from incremental_llm.training.low_rank import _AdaptedLinear

    torch.manual_seed(1)
    x, W, b, A, B = (torch.randn(s, dtype=torch.float64) for s in ((4, 6), (5, 6), (5,), (2, 6), (5, 2)))
    for tensor in (x, A, B):
        tensor.requires_grad_(True)
    y = _AdaptedLinear.apply(x, W, b, A, B, 0.7)
    torch.testing.assert_close(y, x @ W.T + b + 0.7 * (x @ A.T) @ B.T)
    y.square().sum().backward()
    for tensor in (x, A, B):
        flat, at = tensor.detach().reshape(-1), 3
        kept = flat[at].item()
        sides = []
        for step in (1e-6, -1e-6):
            flat[at] = kept + step
            sides.append((x @ W.T + b + 0.7 * (x @ A.T) @ B.T).square().sum().item())
        flat[at] = kept
        assert tensor.grad.reshape(-1)[at].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4)


def test_in_bf16_the_adapter_gets_fp32_gradients_close_to_those_of_peft() -> None:
    model = adapted()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not any(p.requires_grad for p in module.parameters()):
            module.to(torch.bfloat16)
    fused = copy.deepcopy(model)
    assert fuse_adapted_linears(fused) == 2
    x = torch.randn(2, 4, 12).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = gradients(model, x)
        z, found = gradients(fused, x)
    assert z.dtype == y.dtype == torch.bfloat16
    torch.testing.assert_close(z, y, rtol=5e-2, atol=5e-2)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.999


def test_a_disabled_adapter_leaves_the_base_exactly() -> None:
    model = adapted()
    fuse_adapted_linears(model)
    x = torch.randn(3, 12)
    with model.disable_adapter():
        off = model(x)
    base = model.get_base_model()
    plain = base.second.base_layer(torch.tanh(base.first.base_layer(x)))
    assert torch.equal(off, plain)
    assert not torch.equal(model(x), plain)


def test_an_adapter_at_its_start_leaves_the_base_exactly() -> None:
    model = adapted()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    fuse_adapted_linears(model)
    x = torch.randn(3, 12)
    on = model(x)
    with model.disable_adapter():
        assert torch.equal(on, model(x))


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_what_is_not_plain_keeps_the_forward_of_peft(lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    assert fuse_adapted_linears(model) == 0
    assert "forward" not in vars(model.get_base_model().first)
