"""Where an adapter looks at first: at what everyday inputs hold least of.

Shapes: N tokens, D features of a layer's input, R rank.

An update B A x moves a layer's output for every input that A sees, whatever B becomes. So A starts in directions that
everyday conversations hardly use: facts are learnt there as well, and everyday answers move less. The idea is that of
gradient projection (Saha et al. 2021) and of LoRA-Null (Tang et al. 2025), which cut the used directions off; here they
are damped instead, A (C + lambda I)^-1 with C = X^T X, which needs one solve and no eigenvectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows
from incremental_llm.training.scoring import arrange

HELD_BYTES = 2 * 2**30
"""Memory that the products of inputs may take at a time."""


@torch.no_grad()
def start_in_null_space(
    model: Any, rows: Sequence[Row], damping: float, autocast: Any, adapter: str = "default"
) -> None:
    """Turn every fresh A of a PEFT model away from the inputs that `rows` give its layer; its norm stays.

    `damping` is lambda in units of C's mean eigenvalue: at 0.1, a direction with a tenth of the mean keeps half of its
    share. Deterministic, so every process comes to the same A.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}
    for layer, C_DD in input_products(model, layers, rows, autocast):
        weight = layer.lora_A[adapter].weight
        C_DD = C_DD + damping * C_DD.trace() / len(C_DD) * torch.eye(len(C_DD), device=C_DD.device)
        turned_RD = torch.linalg.solve(C_DD, weight.float().T).T
        weight.copy_(turned_RD * (weight.norm() / turned_RD.norm()))


@torch.no_grad()
def input_products(
    model: Any, layers: dict[str, Any], rows: Sequence[Row], autocast: Any
) -> Iterator[tuple[Any, torch.Tensor]]:
    """(layer, C_DD) of each layer: the sum over all tokens of x x^T, every x scaled to length 1.

    Scaled, since the first token of a chat has a hundred times the length of any other in some layers. Of the products
    no more than `HELD_BYTES` are held at a time (a `down_proj` of an 8B model has 0.8 GB): the rows pass through the
    model once for each group of layers.
    """
    for group in _groups(layers):
        products = _products(model, group, rows, autocast)
        for name, layer in group.items():
            yield layer, products[name]


def _groups(layers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers in their order, cut where their products would take more than `HELD_BYTES`."""
    group: dict[str, Any] = {}
    held = 0
    for name, layer in layers.items():
        size = 4 * layer.in_features**2
        if group and held + size > HELD_BYTES:
            yield group
            group, held = {}, 0
        group[name] = layer
        held += size
    if group:
        yield group


def _products(model: Any, layers: dict[str, Any], rows: Sequence[Row], autocast: Any) -> dict[str, torch.Tensor]:
    """C_DD of each layer, in one pass over `rows`.

    Layers that read the same tensor share one product, and what all rows begin with is taken once, times the rows that
    it stands for.
    """
    products: dict[str, torch.Tensor] = {}
    shares: dict[str, str] = {}
    last: list[tuple[str, torch.Tensor]] = []
    times_N = torch.zeros(0)  # how many tokens of the rows each place of the batch at hand stands for; 0 is padding

    def read(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if last and last[0][1] is inputs[0]:
                shares[name] = last[0][0]
                return
            x_ND = torch.nn.functional.normalize(inputs[0].detach().flatten(0, -2).float(), dim=-1)
            x_ND *= times_N.sqrt()[:, None]
            with torch.autocast(x_ND.device.type, enabled=False):  # in bf16 the rare directions would drown in rounding
                products[name] = products.get(name, 0) + x_ND.T @ x_ND
            last[:] = [(name, inputs[0])]

        return hook

    handles = [layer.register_forward_pre_hook(read(name)) for name, layer in layers.items()]
    body = model.get_base_model().base_model
    device = next(model.parameters()).device
    try:
        with autocast(), model.disable_adapter():
            for chunk in length_sorted_chunks(rows):
                ids_BT, own_BT = (tensor.to(device) for tensor in pad_rows([rows[i] for i in chunk]))
                lengths_B = torch.tensor([rows[i].length for i in chunk], device=device)
                own_BT[torch.arange(len(chunk), device=device), lengths_B - 1] = True  # a row's last token counts too
                at_BT, arranged = arrange(body, ids_BT, own_BT)
                real_BT = torch.arange(ids_BT.shape[1], device=device) < lengths_B[:, None]
                times_N = torch.bincount(at_BT[real_BT], minlength=arranged["input_ids"].numel()).float()
                body(**arranged, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: products[shares.get(name, name)] for name in layers}
