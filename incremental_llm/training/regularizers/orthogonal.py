"""Orthogonality to the earlier adapters: the new one reads inputs that they do not (O-LoRA, Wang et al. 2023).

Shapes: R rank of the new adapter, I inputs of a layer, E rank of the earlier subspace.

The paper adds sum |A_i A^T| over the earlier adapters i. Here their rows become one orthonormal basis Q of what they
read, and the penalty is the share of A's squared norm inside it, ||A Q||^2 / ||A||^2: a direction that two of them
read counts once, a small adapter as much as a large one, and making A smaller gains nothing. Between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from incremental_llm.adapters.lora import LoraAdapter
from incremental_llm.training.regularizers.factors import lora_layers

_RELATIVE_RANK = 1e-4  # directions with a smaller share of the largest singular value are rounding
_ROUNDING = 1e-12  # a smaller share of A is rounding too, but Adam would scale its gradient up to a whole step


class Orthogonality:
    """The mean over layers of the share of A inside what the earlier adapters read.

    `full` counts the layers that are left out, since the earlier adapters read all of their inputs.
    """

    name = "orthogonal"

    def __init__(self, model: Any, earlier: Sequence[LoraAdapter], weight: float) -> None:
        self._weight = weight
        self._layers = []
        self.full = 0
        for name, layer in lora_layers(model).items():
            read = [adapter.modules[name][0].float() for adapter in earlier if name in adapter.modules]
            if read:
                A = layer.lora_A["default"].weight
                Q_IE = _basis(torch.cat(read)).to(A.device)
                if Q_IE.shape[0] == Q_IE.shape[1]:
                    self.full += 1  # nothing is left outside: the share is 1 whatever A is
                else:
                    self._layers.append((A, Q_IE))

    @property
    def layers(self) -> int:
        """How many layers were adapted before and are not full."""
        return len(self._layers)

    def loss(self) -> torch.Tensor:
        """weight * mean of ||A Q||^2 / ||A||^2; 0 where no layer was adapted before."""
        if not self._layers:
            return torch.zeros(())
        shares_L = torch.stack([(A_RI @ Q_IE).square().sum() / A_RI.square().sum() for A_RI, Q_IE in self._layers])
        return self._weight * shares_L.where(shares_L > _ROUNDING, 0.0).mean()

    @torch.no_grad()
    def start_outside(self) -> None:
        """Take the earlier subspace out of a fresh A; its norm stays. An A that lies inside it as a whole is kept."""
        for A_RI, Q_IE in self._layers:
            outside_RI = A_RI - (A_RI @ Q_IE) @ Q_IE.T
            if (norm := outside_RI.norm()) > 1e-3 * A_RI.norm():
                A_RI.copy_(outside_RI * (A_RI.norm() / norm))


def _basis(A_EI: torch.Tensor) -> torch.Tensor:
    """Q_IE: an orthonormal basis of the rows of A."""
    _, S_E, Vt_EI = torch.linalg.svd(A_EI, full_matrices=False)
    return Vt_EI[_RELATIVE_RANK * S_E[0] < S_E].T.contiguous()
