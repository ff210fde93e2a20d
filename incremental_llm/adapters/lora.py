"""One LoRA adapter as plain tensors, read from and written to folders that PEFT understands.

    >>> adapter = read_adapter(folder)              # doctest: +SKIP
    >>> delta(adapter, "model.layers.0.self_attn.q_proj")    # doctest: +SKIP

Shapes: R rank, I inputs, O outputs of a linear layer. An adapter adds s·B·A to the weight (O x I), with
s = alpha / R, or alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023).

The one design fact: only plain LoRA on linear layers is read, from safetensors. Whatever would make s·B·A not the
whole truth (DoRA, biases, saved modules, a pickle, a tensor nobody knows) is refused by name, never left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from incremental_llm.artifacts import write_json
from incremental_llm.errors import InputError, IntegrityError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Features of PEFT's LoRA that add something other than s·B·A to a linear layer's weight.
NOT_PLAIN = {
    "use_dora": "DoRA scales the whole weight, so it is not a sum",
    "modules_to_save": "whole modules saved beside LoRA are not a low-rank sum",
    "lora_bias": "biases are not merged",
    "trainable_token_indices": "trained token embeddings are not LoRA",
    "target_parameters": "LoRA on bare parameters is not supported",
    "layer_replication": "a base with replicated layers is another base",
    "fan_in_fan_out": "transposed layers (Conv1D) are not supported",
    "alora_invocation_tokens": "activated LoRA applies to some tokens only",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "arrow_config": "routed adapters are not a sum",
    "kasa_config": "KaSA changes the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
}
PLAIN_INITS = {"gaussian", "orthogonal", "eva"}


Factors = tuple[torch.Tensor, torch.Tensor]
"""A (R x I) and B (O x R) of one module."""


@dataclass(frozen=True)
class LoraAdapter:
    """Factors and scaling s by the name of their module (as in the base's state dict, without `.weight`)."""

    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    scaling: Mapping[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every module, at least 1."""
        return {name: A_RI.shape[0] for name, (A_RI, _) in self.modules.items()}

    def folded(self, module: str) -> Factors:
        """A and s·B of `module` in fp32: their product is its delta. KeyError for a module it does not have."""
        A_RI, B_OR = self.modules[module]
        return A_RI.float(), B_OR.float() * self.scaling[module]


def read_adapter(folder: Path, *, device: str | torch.device = "cpu") -> LoraAdapter:
    """The adapter that PEFT saved in `folder`, in its stored dtype.

    Raises:
        InputError: no adapter there, weights as a pickle, or a kind of LoRA that is not plain (see `NOT_PLAIN`).
        IntegrityError: damaged files, shapes that disagree with the config, or values that are not finite.
    """
    config = _read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"found {', '.join(pickles)}, a pickle, which can run code when it is read" if pickles else "found none"
        raise InputError(
            f"{folder}: expected {WEIGHTS_FILE}, {found}. Save the adapter again with safe_serialization=True."
        )
    try:
        tensors: dict[str, torch.Tensor] = load_file(weights, device=str(device))
    except SafetensorError as error:
        raise IntegrityError(f"{weights}: expected safetensors, found a damaged file ({error}). Restore it.") from error
    modules = _paired(folder, tensors)
    return LoraAdapter(config, modules, {name: _scaling(folder, config, name, pair) for name, pair in modules.items()})


def delta(adapter: LoraAdapter, module: str) -> torch.Tensor:
    """What the adapter adds to the weight of `module`: s·B·A, fp32, O x I. KeyError for a module it does not have."""
    A_RI, B_OR = adapter.folded(module)
    return B_OR @ A_RI


def write_adapter(
    folder: Path,
    modules: Mapping[str, Factors],
    base_name: str,
    *,
    scaling: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> None:
    """Write a PEFT folder (config and safetensors) that adds exactly the deltas of `modules`.

    The scaling of each module (1 unless given) is folded into B, so alpha equals the rank everywhere and no reader can
    scale it wrongly; ranks that differ between modules go to `rank_pattern`. `folder` is created where it is missing.
    `revision` is the commit of the base on the Hub, where it comes from there.

    Raises:
        InputError: no modules.
        IntegrityError: a value that is not finite.
    """
    if not modules:
        raise InputError("expected an adapter with at least one module, found none. There is nothing to write.")
    adapter = LoraAdapter({}, modules, dict.fromkeys(modules, 1.0) if scaling is None else scaling)
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(modules):
        for letter, tensor in zip("AB", adapter.folded(name), strict=True):
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = tensor.to(dtype).contiguous().cpu()
    _require_finite(folder, tensors)
    ranks = list(adapter.ranks.values())
    rank = max(set(ranks), key=lambda r: (ranks.count(r), r))
    others = {f"^{re.escape(name)}": r for name, r in sorted(adapter.ranks.items()) if r != rank}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {**_config(base_name, rank, others, sorted(modules)), "revision": revision}
    write_json(folder / CONFIG_FILE, config)


def _config(base_name: str, rank: int, ranks: Mapping[str, int], targets: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(ranks),
        "target_modules": targets,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{folder}: expected a PEFT adapter with {CONFIG_FILE}, found none ({error.strerror}). Check the path."
        ) from error
    except ValueError as error:
        raise IntegrityError(f"{path}: expected JSON, found something else ({error}). Restore the file.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InputError(f"{path}: expected peft_type 'LORA', found {found!r}. Only LoRA adapters can be stacked.")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: expected bias 'none', found {config['bias']!r}. Train it again with bias='none'.")
    for key, reason in NOT_PLAIN.items():
        if config.get(key):
            raise InputError(
                f"{path}: expected plain LoRA, found {key} = {config[key]!r}: {reason}. Train it again without {key}."
            )
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in PLAIN_INITS:
        raise InputError(
            f"{path}: expected an adapter over the unchanged base, found init_lora_weights = {init!r}, which changes "
            "the base weights. Convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )
    return config


def _paired(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise InputError(
                f"{folder}: expected lora_A and lora_B of linear layers, found {name} {tuple(tensor.shape)}. "
                "Only plain LoRA on linear layers can be stacked."
            )
        found.setdefault(match["module"], {})[match["factor"]] = tensor
    if not found:
        raise IntegrityError(f"{folder}: expected LoRA tensors, found none. Train the adapter again.")
    _require_finite(folder, tensors)
    for name, pair in found.items():
        if pair.keys() != {"A", "B"}:
            raise IntegrityError(
                f"{folder}: expected lora_A and lora_B of {name}, found only lora_{next(iter(pair))}. Restore the file."
            )
    return {name: (pair["A"], pair["B"]) for name, pair in sorted(found.items())}


def _scaling(folder: Path, config: Mapping[str, Any], name: str, factors: Factors) -> float:
    """alpha / R, or alpha / sqrt(R) for rsLoRA, of one module; its factors must have the rank the config says."""
    rank = _of_pattern(config.get("rank_pattern"), name, config.get("r"))
    alpha = _of_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    found = (factors[0].shape[0], factors[1].shape[1])
    if found != (rank, rank):
        raise IntegrityError(
            f"{folder}: expected rank {rank} for {name} as in {CONFIG_FILE}, found lora_A and lora_B of rank {found}. "
            "Config and weights are not of the same adapter: restore both."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise IntegrityError(f"{folder}: expected lora_alpha of {name} to be a number, found {alpha!r}. Restore it.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The first entry whose key matches the end of the module's path, as PEFT's get_pattern_key does it."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _require_finite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise IntegrityError(
            f"{folder}: expected finite weights, found NaN or infinity in {bad[0]}"
            + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
            + ". Training diverged or the file is damaged: do not use this adapter."
        )
