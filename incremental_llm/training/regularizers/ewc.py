"""Elastic weight consolidation for LoRA: what earlier increments need of the weights moves less.

Shapes: O outputs, I inputs of a layer, R rank, T tokens of a row.

The Fisher information F says how far the policy's answers move when a weight does: KL(previous || new) is about
1/2 d F d for a small change d of the weights (Kirkpatrick et al. 2017). It is estimated once, at the end of an
increment, on the rows that it trained (new ones and the replay sample), and lies beside the adapter: no old data is
read again. Labels are drawn from the model itself, so this is the true Fisher and not the "empirical" one (Kunstner et
al. 2019). Earlier estimates are added with a decay (online EWC, Schwarz et al. 2018): a weight that several increments
need is held by the sum, and no increment by less than its own estimate.

A fresh adapter has B = 0, where the Fisher of A is exactly 0: EWC on its factors would do nothing. So for a stack F is
that of the folded weights W, kept by row and column as in Adafactor (Shazeer & Stern 2018), F_OI = r_O c_I / sum(r),
and the penalty is on what the adapter adds to them, d = s·B·A:

    1/2 sum_OI F_OI (s·BA)_OI^2  =  s^2 / (2 sum(r)) * tr( (B^T diag(r) B) (A diag(c) A^T) )

which costs two R x R products a layer. Where one adapter goes on (`continue`), F is the diagonal over A and B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.regularizers.factors import lora_layers

FISHER_FILE = "fisher.safetensors"

Fisher = dict[str, torch.Tensor]
"""By `<module>.row` (O) and `<module>.column` (I) for folded weights, else by `<module>.A` and `<module>.B`, of their
shapes; per labelled token, so that 1/2 d F d is in nats a token, of each increment that was added."""


class FoldedEwc:
    """Penalty on s·BA by the factored Fisher of the weights that it is added to; for a fresh adapter on a stack."""

    name = "ewc"

    def __init__(self, model: Any, fisher: Fisher, weight: float) -> None:
        self._weight = weight
        self._layers = []
        for name, layer in lora_layers(model).items():
            if f"{name}.row" not in fisher:
                continue
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            row_O, column_I = (fisher[f"{name}.{side}"].to(A.device) for side in ("row", "column"))
            if total := float(row_O.sum()):
                self._layers.append((A, B, layer.scaling["default"] ** 2 / (2 * total), row_O, column_I))

    @property
    def layers(self) -> int:
        """How many layers have a Fisher to be held by."""
        return len(self._layers)

    def loss(self) -> torch.Tensor:
        """weight * 1/2 sum F (s·BA)^2 over all layers, in nats a token, at least 0."""
        total = torch.zeros((), device=self._layers[0][0].device if self._layers else None)
        for A_RI, B_OR, factor, row_O, column_I in self._layers:
            outer_RR = B_OR.T @ (row_O[:, None] * B_OR)
            inner_RR = (A_RI * column_I) @ A_RI.T
            total = total + factor * (outer_RR * inner_RR).sum()
        return self._weight * total


class DiagonalEwc:
    """Penalty on the movement of A and B from where they start tonight; for an adapter that goes on."""

    name = "ewc"

    def __init__(self, model: Any, fisher: Fisher, weight: float) -> None:
        self._weight = weight
        self._factors = []
        for name, layer in lora_layers(model).items():
            for side, factor in (("A", layer.lora_A), ("B", layer.lora_B)):
                if f"{name}.{side}" in fisher:
                    parameter = factor["default"].weight
                    start = parameter.detach().clone()
                    self._factors.append((parameter, start, fisher[f"{name}.{side}"].to(parameter.device)))

    @property
    def layers(self) -> int:
        """How many factors have a Fisher to be held by."""
        return len(self._factors)

    def loss(self) -> torch.Tensor:
        """weight * 1/2 sum F (theta - start)^2, in nats a token, at least 0."""
        total = torch.zeros((), device=self._factors[0][0].device if self._factors else None)
        for parameter, start, fisher in self._factors:
            total = total + (fisher * (parameter - start).square()).sum() / 2
        return self._weight * total


def estimate_fisher(model: Any, rows: Sequence[Row], autocast: Any, *, seed: int, folded: bool) -> Fisher:
    """The Fisher of a PEFT model as it is: of the folded weights under its adapter, or of the adapter's A and B.

    One row at a time: the square is of a whole answer's gradient. Deterministic for a seed.
    """
    layers = lora_layers(model)
    found: Fisher = {}
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(len(row.completion) for row in rows)
    squares = _folded_squares if folded else _factor_squares
    for row in rows:
        for name, square in squares(model, layers, row, autocast, generator).items():
            found[name] = found.get(name, 0) + square / tokens
    return found


def accumulated(before: Mapping[str, torch.Tensor], new: Fisher, decay: float) -> Fisher:
    """decay * before + new (Schwarz et al. 2018, eq. 10): precisions add up, and old ones fade."""
    faded = {name: decay * tensor for name, tensor in before.items()}
    return faded | {
        name: faded[name].to(tensor.device) + tensor if name in faded else tensor for name, tensor in new.items()
    }


def write_fisher(folder: Path, fisher: Fisher) -> None:
    """Write it beside an adapter."""
    save_file(
        {name: tensor.float().contiguous().cpu() for name, tensor in sorted(fisher.items())}, folder / FISHER_FILE
    )


def read_fisher(folder: Path) -> Fisher:
    """What `write_fisher` wrote; empty where there is no such file."""
    path = folder / FISHER_FILE
    return dict(load_file(path)) if path.is_file() else {}


def is_folded(fisher: Mapping[str, torch.Tensor]) -> bool:
    """Whether it is of folded weights."""
    return any(name.endswith(".row") for name in fisher)


def _drawn_nll(model: Any, row: Row, autocast: Any, generator: torch.Generator) -> torch.Tensor:
    """Minus the log-likelihood of labels that the model draws itself, at the places of the row's completion."""
    device = next(model.parameters()).device
    ids_BT, scored_BT = (tensor.to(device) for tensor in pad_rows([row]))
    with autocast():
        logits_NV = model(input_ids=ids_BT, labelled_BT=scored_BT).logits
    logps_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    drawn_N1 = torch.multinomial(logps_NV.detach().exp().cpu(), 1, generator=generator).to(device)
    return -logps_NV.gather(-1, drawn_N1).sum()


def _folded_squares(
    model: Any, layers: Mapping[str, Any], row: Row, autocast: Any, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Row and column sums of G^2, G = sum_t d_t x_t^T the gradient of each layer's folded weight.

    sum_I G_OI^2 = sum_t,u d_tO d_uO (x_t · x_u): T x T products instead of an O x I matrix.
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x_TI = inputs[0].detach().flatten(0, -2).float()

            def keep(gradient: torch.Tensor) -> None:
                seen[name] = (x_TI, gradient.detach().flatten(0, -2).float())

            output.register_hook(keep)

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(_drawn_nll(model, row, autocast, generator), parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    squares: dict[str, torch.Tensor] = {}
    for name, (x_TI, d_TO) in seen.items():
        squares[f"{name}.row"] = (d_TO * ((x_TI @ x_TI.T) @ d_TO)).sum(0).clamp(min=0)
        squares[f"{name}.column"] = (x_TI * ((d_TO @ d_TO.T) @ x_TI)).sum(0).clamp(min=0)
    return squares


def _factor_squares(
    model: Any, layers: Mapping[str, Any], row: Row, autocast: Any, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Squared gradients of A and B."""
    factors = {
        f"{name}.{side}": factor["default"].weight
        for name, layer in layers.items()
        for side, factor in (("A", layer.lora_A), ("B", layer.lora_B))
    }
    gradients = torch.autograd.grad(_drawn_nll(model, row, autocast, generator), list(factors.values()))
    return {name: gradient.float().square() for name, gradient in zip(factors, gradients, strict=True)}
