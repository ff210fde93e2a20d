"""Several adapters into one, or into the weights they adapt; fp32 arithmetic on plain tensors.

    >>> one = concatenate([read_adapter(a), read_adapter(b)])   # exact, rank r_a + r_b   # doctest: +SKIP
    >>> small, error = reduce_rank(one, 16)                      # best of rank 16         # doctest: +SKIP
    >>> small, error = reduce_to_error(one, 0.01)                # of 1 % error at most    # doctest: +SKIP

Shapes: R rank, I inputs, O outputs.

The one design fact: a stack is the sum of its deltas. Concatenating factors keeps that sum exactly, merging rounds it
once to the weight's dtype, and nothing is ever unmerged: in bf16, merge and unmerge changes most weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from incremental_llm.adapters.lora import Factors, LoraAdapter
from incremental_llm.adapters.low_rank import RankReduction, cut, of_factors, rank_for
from incremental_llm.errors import InputError, IntegrityError


def weighted(adapters: Sequence[LoraAdapter], weights: Sequence[float]) -> list[LoraAdapter]:
    """Adapters whose deltas are `weights` times those given: task arithmetic (Ilharco et al. 2023), by their scalings.

    A weight below 0 takes away what an adapter added; one of weight 0 is left out.

    Raises:
        InputError: another number of weights than of adapters, one that is not finite, or none above or below 0.
    """
    require_alike(adapters)
    if len(weights) != len(adapters) or not all(map(math.isfinite, weights)) or not any(weights):
        raise InputError(
            f"expected {len(adapters)} finite weights, one for each adapter and not all 0, found {list(weights)}."
        )
    return [
        replace(adapter, scaling={name: weight * scaling for name, scaling in adapter.scaling.items()})
        for adapter, weight in zip(adapters, weights, strict=True)
        if weight
    ]


def concatenate(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    """One adapter whose delta is the sum of those of `adapters`: factors stacked along the rank, scaling 1, fp32.

    A module's rank is the sum of its ranks in the adapters that have it, so ranks may differ between modules.

    Raises:
        InputError: no adapters, or two that disagree on the shape of a module (adapters of different bases).
        IntegrityError: a value that is not finite.
    """
    require_alike(adapters)
    modules: dict[str, Factors] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        parts = [adapter.folded(name) for adapter in adapters if name in adapter.modules]
        modules[name] = (torch.cat([A_RI for A_RI, _ in parts]), torch.cat([B_OR for _, B_OR in parts], dim=1))
    return unscaled(adapters[0].config, modules)


def merged(weights: Mapping[str, torch.Tensor], adapters: Sequence[LoraAdapter]) -> dict[str, torch.Tensor]:
    """A state dict with the deltas of `adapters` added; `weights` is left as it is, untouched tensors are shared.

    Each weight is W + sum of s·B·A in fp32, rounded once to the dtype of W.

    Raises:
        InputError: no adapters; a module that is not among `weights`, has another shape, is quantised, or shares its
            storage with another weight (a tied embedding).
        IntegrityError: a merged weight that is not finite.
    """
    _require_some(adapters)
    targets = sorted({name for adapter in adapters for name in adapter.modules})
    for name in targets:
        _require_mergeable(weights, name)
    return {**weights, **{f"{name}.weight": _summed(weights[f"{name}.weight"], name, adapters) for name in targets}}


def merge_into(model: torch.nn.Module, adapters: Sequence[LoraAdapter]) -> None:
    """`merged`, in place, on a model's own weights; a refusal leaves the model as it was.

    Raises:
        InputError, IntegrityError: as `merged`.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        result = merged({name: parameter.detach() for name, parameter in weights.items()}, adapters)
        for name in {f"{module}.weight" for adapter in adapters for module in adapter.modules}:
            weights[name].copy_(result[name])


def reduce_rank(adapter: LoraAdapter, rank: int) -> tuple[LoraAdapter, RankReduction]:
    """The best adapter of at most `rank` in the Frobenius norm, and how far it is from `adapter`.

    A module whose rank is not above `rank` is kept as it is, exactly.

    Raises:
        InputError: `rank` below 1.
    """
    modules, reduction = cut({name: of_factors(adapter.folded(name)) for name in adapter.modules}, rank)
    return unscaled(adapter.config, modules), reduction


def reduce_to_error(adapter: LoraAdapter, error: float, most: int | None = None) -> tuple[LoraAdapter, RankReduction]:
    """The best adapter of the smallest rank whose relative Frobenius error is at most `error`, and its error.

    No rank is above `most`, if that is given: the error can then be larger than was asked for, and is reported.

    Raises:
        InputError: an error that is not in [0, 1), or `most` below 1.
    """
    deltas = {name: of_factors(adapter.folded(name)) for name in adapter.modules}
    needed = rank_for(deltas, error)
    modules, reduction = cut(deltas, needed if most is None else min(needed, most))
    return unscaled(adapter.config, modules), reduction


def padded(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    """The same deltas, every module at `rank`: rows of zeros below A, columns of zeros beside B; exact.

    Raises:
        InputError: a module whose rank is above `rank`.
    """
    largest = max(adapter.ranks.values(), default=0)
    if largest > rank:
        raise InputError(f"expected ranks of at most {rank}, found {largest}. Reduce the rank first.")
    modules: dict[str, Factors] = {}
    for name in adapter.modules:
        A_RI, B_OR = adapter.folded(name)
        missing = rank - A_RI.shape[0]
        pad = torch.nn.functional.pad
        modules[name] = (pad(A_RI, (0, 0, 0, missing)), pad(B_OR, (0, missing)))
    return unscaled(adapter.config, modules)


def unscaled(config: Mapping[str, Any], modules: Mapping[str, Factors]) -> LoraAdapter:
    """An adapter whose scalings are 1; the config keeps what is still true of it (which base it is for)."""
    kept = {key: config[key] for key in ("peft_type", "task_type", "base_model_name_or_path") if key in config}
    return LoraAdapter(kept, modules, dict.fromkeys(modules, 1.0))


def _summed(weight_OI: torch.Tensor, name: str, adapters: Sequence[LoraAdapter]) -> torch.Tensor:
    total_OI = weight_OI.to(torch.float32, copy=True)
    for adapter in adapters:
        if name in adapter.modules:
            A_RI, B_OR = (factor.to(total_OI.device) for factor in adapter.folded(name))
            if (B_OR.shape[0], A_RI.shape[1]) != weight_OI.shape:
                raise InputError(
                    f"{name}: expected a delta of shape {tuple(weight_OI.shape)}, found "
                    f"{(B_OR.shape[0], A_RI.shape[1])}. The adapter is of another base."
                )
            total_OI.addmm_(B_OR, A_RI)
    rounded_OI = total_OI.to(weight_OI.dtype)
    if not bool(torch.isfinite(rounded_OI).all()):
        raise IntegrityError(f"{name}: expected finite merged weights, found NaN or infinity. Do not use this adapter.")
    return rounded_OI


def _require_mergeable(weights: Mapping[str, torch.Tensor], name: str) -> None:
    key = f"{name}.weight"
    if key not in weights:
        raise InputError(
            f"{name}: expected this module in the base, found none. The adapter is of another base, or the model "
            "still carries adapters of its own: load the plain base."
        )
    weight = weights[key]
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16) or weight.ndim != 2:
        raise InputError(
            f"{name}: expected a float matrix to merge into, found {weight.dtype} {tuple(weight.shape)}. Quantised "
            "weights lose most of a delta: load the base unquantised, merge, and treat the result as a new base."
        )
    twin = next((k for k, w in weights.items() if k != key and w.data_ptr() == weight.data_ptr() and w.numel()), None)
    if twin is not None and weight.device.type != "meta":
        raise InputError(
            f"{name}: expected a weight of its own, found one that is tied to {twin}, which the merge would change as "
            "well. Leave tied modules out of target_modules, or untie them first."
        )


def require_alike(adapters: Sequence[LoraAdapter]) -> None:
    """Refuse adapters that cannot be summed.

    Two bases with layers of the same shapes cannot be told apart here: a registry pins the base by its digest.

    Raises:
        InputError: no adapters, or two that disagree on the shape of a module (adapters of different bases).
        IntegrityError: a value that is not finite.
    """
    _require_some(adapters)
    shapes: dict[str, set[tuple[int, int]]] = {}
    for adapter in adapters:
        for name, (A_RI, B_OR) in adapter.modules.items():
            shapes.setdefault(name, set()).add((B_OR.shape[0], A_RI.shape[1]))
            if not (bool(torch.isfinite(A_RI).all()) and bool(torch.isfinite(B_OR).all())):
                raise IntegrityError(
                    f"{name}: expected finite weights, found NaN or infinity. Training diverged or the file is "
                    "damaged: do not use this adapter."
                )
    for name, found in sorted(shapes.items()):
        if len(found) > 1:
            raise InputError(
                f"{name}: expected one shape in all adapters, found {sorted(found)}. They are of different bases."
            )


def _require_some(adapters: Sequence[LoraAdapter]) -> None:
    if not adapters:
        raise InputError("expected at least one adapter, found none. A stack without adapters is its base: use that.")
