"""A linear layer and its adapter as one operation: y = W x + b + s B (A x), with gradients for x, A and B alone.

Shapes: N positions, D features in, E features out, R rank.

PEFT's forward is some twenty operations a layer, forward and backward; here they are eight products. The sum is rounded
once, where PEFT rounds the update, the scaled update and the sum. How little time that saves is in benchmarks/NOTES.md.
Hu et al. 2021 has the formula.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable


class _AdaptedLinear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        W_ED: torch.Tensor,
        bias_E: torch.Tensor | None,
        A_RD: torch.Tensor,
        B_ER: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        A_RD, B_ER = A_RD.to(W_ED.dtype), B_ER.to(W_ED.dtype)
        down_NR = x_ND @ A_RD.T
        ctx.save_for_backward(x_ND, W_ED, A_RD, B_ER, down_NR)
        ctx.scaling = scaling
        return torch.nn.functional.linear(x_ND, W_ED, bias_E).addmm_(down_NR, B_ER.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_ND, W_ED, A_RD, B_ER, down_NR = ctx.saved_tensors
        grad_NR = (grad_NE @ B_ER).mul_(ctx.scaling)
        grad_ND = None
        if ctx.needs_input_grad[0]:
            grad_ND = (grad_NE @ W_ED).addmm_(grad_NR, A_RD)
        grad_A = (grad_NR.T @ x_ND).float()
        grad_B = (grad_NE.T @ down_NR).float().mul_(ctx.scaling)
        return grad_ND, None, None, grad_A, grad_B, None


def fuse_adapted_linears(model: Any, adapter: str = "default") -> int:
    """Let every plain LoRA layer of a PEFT model run as one operation; returns how many do.

    Layers with dropout, a variant such as DoRA, a quantised base or a trainable one keep PEFT's forward. The model must
    hold only `adapter`, and train nothing but its factors, in fp32.
    """
    layers = [module for module in model.modules() if type(module) is Linear and _is_plain(module, adapter)]
    for layer in layers:
        layer.forward = MethodType(_forward(adapter), layer)
    return len(layers)


def _is_plain(layer: Linear, adapter: str) -> bool:
    return (
        list(layer.lora_A) == [adapter]
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], torch.nn.Identity)
        and type(layer.base_layer) is torch.nn.Linear
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and layer.lora_A[adapter].bias is None
        and layer.lora_B[adapter].bias is None
        and layer.lora_A[adapter].weight.dtype == torch.float32
    )


def _forward(adapter: str) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.base_layer
        if self.disable_adapters or x.dtype != base.weight.dtype:
            return type(self).forward(self, x, *args, **kwargs)
        factors = (self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        y_NE = _AdaptedLinear.apply(x.flatten(0, -2), base.weight, base.bias, *factors, self.scaling[adapter])
        return y_NE.unflatten(0, x.shape[:-1])

    return forward
