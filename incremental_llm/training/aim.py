"""Where a patch's adapter looks at: at what its own answer's inputs hold, and what other prompts' inputs do not.

Shapes: N tokens, D features of a layer's input, R rank.

An update B A x moves a layer's output for every x that A sees. The closed-form edit of one fact reads C^-1 k, its key
k turned away from the inputs of everything else, C = X^T X (Meng et al. 2022, ROME, eq. 2). Here each A starts there,
with the R strongest directions of the keys of the answer's tokens, and goes on training: fewer steps reach the answer,
and other answers move less on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.null_space import input_products
from incremental_llm.training.regularizers.factors import lora_layers


@torch.no_grad()
def aim(model: Any, row: Row, others: Sequence[Row], damping: float, autocast: Any) -> None:
    """Start every fresh A of a PEFT model at the keys of `row`'s completion, away from the inputs that `others` give.

    `damping` is lambda in units of C's mean eigenvalue, as in `start_in_null_space`. The norm of A stays; directions
    that a short completion cannot fill stay as they were.
    """
    layers = lora_layers(model)
    keys = _keys(model, layers, row, autocast)
    for (name, layer), (_, C_DD) in zip(layers.items(), input_products(model, layers, others, autocast), strict=True):
        weight = layer.lora_A["default"].weight
        norm = weight.norm()
        C_DD = C_DD + damping * C_DD.trace() / len(C_DD) * torch.eye(len(C_DD), device=C_DD.device)
        turned_ND = torch.linalg.solve(C_DD, keys[name].T).T
        directions_RD = torch.linalg.svd(turned_ND, full_matrices=False).Vh[: len(weight)]
        weight[: len(directions_RD)] = directions_RD.to(weight.dtype) * norm / len(weight) ** 0.5
        weight *= norm / weight.norm()


def _keys(model: Any, layers: dict[str, Any], row: Row, autocast: Any) -> dict[str, torch.Tensor]:
    """x_ND of length 1 that each layer reads at the positions which predict the completion."""
    found: dict[str, torch.Tensor] = {}

    def read(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x_ND = inputs[0].detach().flatten(0, -2).float()[len(row.prompt) - 1 : row.length - 1]
            found[name] = torch.nn.functional.normalize(x_ND, dim=-1)

        return hook

    handles = [layer.register_forward_pre_hook(read(name)) for name, layer in layers.items()]
    ids_BT, _ = pad_rows([row])
    try:
        with autocast(), model.disable_adapter():
            model.get_base_model().base_model(input_ids=ids_BT.to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
