"""Several adapters into one by any method: one call, one report of what it lost.

    >>> one, loss = merge(adapters, MergeSettings(method="ties", density=0.2, rank=64))     # doctest: +SKIP
    >>> loss.relative_error                                                                 # doctest: +SKIP

sum         the deltas weighed and added, as concatenated factors: exact until a rank or an error is asked for
magnitude   of each delta only its largest entries
ties        these, and of them only those whose sign has the most weight, averaged: "TIES-Merging: Resolving
            interference when merging models" (Yadav et al. 2023)
dare        of each delta entries drawn at random, divided by their share: "Language models are Super Mario" (Yu et al.
            2024)
dare_ties   drawn as by dare, elected as by ties

Shapes: R rank, I inputs, O outputs.

The one design fact: all but the sum work on entries of s·B·A, not on those of B and A, whose signs mean nothing by
themselves (turning the sign of both changes no delta). Deltas are formed for one module at a time, one or two passes
over the adapters, so memory does not grow with their number; the result goes back into factors at once, and the error
that is reported is its distance from what the method gave.

PEFT's `add_weighted_adapter` does the same under names that end in `_svd`, and something else under `linear`, `ties`
and `dare_linear`, where it merges A and B apart. It elects signs before it weighs, and this module after, so that a
negative weight turns an adapter's vote as well; with equal positive weights the two agree (tests).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch

from incremental_llm.adapters.lora import LoraAdapter, delta
from incremental_llm.adapters.low_rank import RankReduction, cut, of_matrix, rank_for
from incremental_llm.adapters.merge import (
    concatenate,
    reduce_rank,
    reduce_to_error,
    require_alike,
    unscaled,
    weighted,
)
from incremental_llm.adapters.merge_settings import MergeSettings


def merge(
    adapters: Sequence[LoraAdapter], settings: MergeSettings, weights: Sequence[float] | None = None
) -> tuple[LoraAdapter, RankReduction]:
    """One adapter for all of `adapters`, fp32 and with scalings of 1, and how far it is from what the method gave.

    Args:
        weights: of each adapter; 1 each by default, which is what a stack computes.

    Raises:
        InputError: no adapters, two of different bases, or weights that do not fit.
        IntegrityError: a value that is not finite.
    """
    require_alike(adapters)
    told = list(adapters) if weights is None else weighted(adapters, weights)
    if settings.method != "sum":
        return _entrywise(told, settings)
    one = concatenate(told)
    if settings.error is not None:
        return reduce_to_error(one, settings.error, settings.rank)
    return reduce_rank(one, settings.rank or max(one.ranks.values()))


def merged_delta(adapters: Sequence[LoraAdapter], module: str, settings: MergeSettings) -> torch.Tensor:
    """What the method gives for one module before it goes back into factors; fp32, O x I.

    KeyError for a module that no adapter has.
    """
    if settings.method in ("ties", "dare_ties"):
        return _elected(adapters, module, settings)
    parts = _kept(adapters, module, settings)
    try:
        total_OI = next(parts)
    except StopIteration:
        raise KeyError(module) from None
    for part_OI in parts:
        total_OI = total_OI + part_OI
    return total_OI


def _entrywise(adapters: Sequence[LoraAdapter], settings: MergeSettings) -> tuple[LoraAdapter, RankReduction]:
    names = sorted({name for adapter in adapters for name in adapter.modules})
    deltas = {}
    for name in names:
        summed = sum(adapter.ranks[name] for adapter in adapters if name in adapter.modules)
        most = summed if settings.rank is None else settings.rank
        deltas[name] = of_matrix(merged_delta(adapters, name, settings), most)
    largest = max(delta.rank for delta in deltas.values())
    rank = largest if settings.error is None else rank_for(deltas, settings.error)
    modules, reduction = cut(deltas, rank)
    return unscaled(adapters[0].config, modules), reduction


def _elected(adapters: Sequence[LoraAdapter], module: str, settings: MergeSettings) -> torch.Tensor:
    """The mean of the entries whose sign is that of their sum: TIES's election and disjoint merge."""
    total_OI = merged_delta(adapters, module, settings.model_copy(update={"method": _DRAWN_BY[settings.method]}))
    sign_OI = torch.where(total_OI >= 0, 1.0, -1.0)
    agreed_OI, voters_OI = torch.zeros_like(total_OI), torch.zeros_like(total_OI)
    for part_OI in _kept(adapters, module, settings):
        with_it_OI = part_OI.sign() == sign_OI
        agreed_OI += part_OI * with_it_OI
        voters_OI += with_it_OI
    return agreed_OI / voters_OI.clamp(min=1)


_DRAWN_BY = {"ties": "magnitude", "dare_ties": "dare"}


def _kept(adapters: Sequence[LoraAdapter], module: str, settings: MergeSettings) -> Iterator[torch.Tensor]:
    """The deltas of one module, thinned out; the same ones at every call."""
    draw = torch.Generator().manual_seed(draw_seed(settings.seed, module))
    for adapter in adapters:
        if module not in adapter.modules:
            continue
        delta_OI = delta(adapter, module)
        if settings.method == "sum" or settings.density == 1:
            yield delta_OI
        elif settings.method.startswith("dare"):
            chances_OI = torch.full(delta_OI.shape, settings.density)
            mask_OI = torch.bernoulli(chances_OI, generator=draw).to(delta_OI.device)
            yield delta_OI * mask_OI / settings.density
        else:
            yield _largest(delta_OI, settings.density)


def draw_seed(seed: int, module: str) -> int:
    """The seed of one module's draw: modules of the same shape are thinned out independently."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{module}".encode()).digest()[:4], "big")


def _largest(delta_OI: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of largest magnitude, zeros elsewhere; at least one stays."""
    count = max(1, int(density * delta_OI.numel()))
    flat = delta_OI.flatten()
    places = flat.abs().topk(count).indices
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(delta_OI)
