"""Frobenius norms of what stacks add to a base's weights, from the factors of their adapters alone.

For factors A (R x I) and B (O x R) the norm of B·A is sqrt(sum((BᵀB) * (AAᵀ))): R x R products, never O x I. A stack is
one concatenated pair; the difference of two is the pair of those that they do not share, one side negated, so what they
share cancels exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from incremental_llm.adapters.lora import LoraAdapter, read_adapter

_LAYER = re.compile(r"(?:layers|h|blocks)\.(\d+)\.")


def layer_changes(
    folders: Mapping[str, Path], before: Sequence[str], after: Sequence[str]
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Layer -> norms `before`, `after`, `moved` and `relative`; `folders` maps each digest to its adapter.

    Raises:
        InputError: an adapter that is not plain LoRA.
        IntegrityError: a damaged one.
    """
    adapters = {digest: read_adapter(folder) for digest, folder in folders.items()}
    common = set(before) & set(after)
    sides = (
        [(adapters[digest], 1.0) for digest in before],
        [(adapters[digest], 1.0) for digest in after],
        [
            (adapters[digest], sign)
            for stack, sign in ((after, 1.0), (before, -1.0))
            for digest in stack
            if digest not in common
        ],
    )
    squares: dict[str, list[float]] = {}
    for module in sorted({name for adapter in adapters.values() for name in adapter.modules}):
        sums = squares.setdefault(_layer(module), [0.0, 0.0, 0.0])
        for place, terms in enumerate(sides):
            sums[place] += _square(terms, module)
    for layer in sorted(squares, key=_order):
        old, new, moved = (math.sqrt(value) for value in squares[layer])
        yield layer, {"before": old, "after": new, "moved": moved, "relative": moved / old if old else None}


def _square(terms: Sequence[tuple[LoraAdapter, float]], module: str) -> float:
    """Squared norm of the signed sum of the terms' deltas at one module, in double precision."""
    pairs = [(*adapter.folded(module), sign) for adapter, sign in terms if module in adapter.modules]
    if not pairs:
        return 0.0
    A_RI = torch.cat([A for A, _, _ in pairs]).double()
    B_OR = torch.cat([sign * B for _, B, sign in pairs], dim=1).double()
    return max(float(((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum()), 0.0)  # rounding may leave a little below 0


def _layer(module: str) -> str:
    found = _LAYER.search(module)
    return f"layer {found[1]}" if found else module


def _order(layer: str) -> tuple[bool, int, str]:
    number = layer.removeprefix("layer ")
    return (not number.isdigit(), int(number) if number.isdigit() else 0, layer)
