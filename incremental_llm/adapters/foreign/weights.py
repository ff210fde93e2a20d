"""A stranger's tensors: exactly A and B of each target, in the base's shapes, finite, and of a size that adapts.

Shapes: R rank, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from incremental_llm.adapters.foreign.base import BaseLayers
from incremental_llm.adapters.foreign.config import MAX_RANK, ForeignConfig
from incremental_llm.adapters.foreign.header import BYTES_OF, Header, TensorEntry
from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.adapters.lora import Factors, LoraAdapter
from incremental_llm.errors import InputError, IntegrityError

MAX_RELATIVE_NORM = 1.0
"""Largest |s·B·A| / |W| of a layer (Frobenius). Nine adapters trained on SmolLM2-135M, at rates up to 1e-3, have 0.002
to 0.12; above 1 a layer computes more of the adapter than of the base, and is another model under the base's name."""
MAX_VALUE = 1024.0
"""Largest magnitude in A and s·B. Trained factors stay below 1; beyond this a product with activations leaves float16
(65,504), though a tiny partner keeps the delta itself small."""

_PREFIX = "base_model.model."
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EMBEDDINGS = ("embed_tokens", "lm_head", "lora_embedding", "wte", "embed_out", "word_embeddings")


def largest_file(base: BaseLayers) -> int:
    """Bytes of the largest LoRA for this base: every linear layer at the largest rank in float32, and a header."""
    values = sum(MAX_RANK * (outputs + inputs) for outputs, inputs in base.linear.values())
    return 8 + base.longest_text + values * BYTES_OF["F32"]


def require_tensors(header: Header, config: ForeignConfig, base: BaseLayers, path: Path) -> None:
    """Compare names and shapes with the config's targets and the base's layers; no payload is needed.

    Raises:
        InputError: a tensor too many, a module that the base has not or that has another shape.
        IntegrityError: a tensor missing, or ranks that differ from the config.
    """
    expected = {
        f"{_PREFIX}{module}.lora_{factor}.weight": (module, factor) for module in config.ranks for factor in "AB"
    }
    found = {entry.name: entry for entry in header.tensors}
    for name in sorted(found.keys() - expected.keys()):
        raise InputError(f"{path}: {_why_not(name, base)}")
    for name in sorted(expected.keys() - found.keys()):
        raise IntegrityError(
            f"{path}: expected lora_A and lora_B of every layer in target_modules, found no {name}. "
            "Config and weights are not of the same adapter, or a tensor was taken out: restore both."
        )
    for name, (module, factor) in sorted(expected.items()):
        _require_shape(found[name], factor, config.ranks[module], base.linear[module], path)


def _why_not(name: str, base: BaseLayers) -> str:
    found = f"expected only lora_A and lora_B of the layers in target_modules, found {quoted(name)}"
    if any(part in name for part in _EMBEDDINGS):
        return (
            f"{found}: embeddings or a head, trained or resized for other tokens. Train it again on the base's own "
            "tokenizer, without modules_to_save and with save_embedding_layers=False."
        )
    if not name.endswith((".lora_A.weight", ".lora_B.weight")):
        return f"{found}, which is no factor of plain LoRA. What it does cannot be told: save the adapter without."
    if name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] not in base.linear:
        return f"{found}: the base has no such linear layer. The adapter is of another base."
    return f"{found}, which target_modules does not name: PEFT would leave it out. Restore the config."


def _require_shape(entry: TensorEntry, factor: str, rank: int, shape_OI: tuple[int, int], path: Path) -> None:
    outputs, inputs = shape_OI
    expected = (rank, inputs) if factor == "A" else (outputs, rank)
    if entry.shape == expected:
        return
    side = 0 if factor == "A" else 1
    if len(entry.shape) == 2 and entry.shape[1 - side] == expected[1 - side]:
        raise IntegrityError(
            f"{path}: expected rank {rank} for {entry.name} as in the config, and equal in A and B; found shape "
            f"{quoted(entry.shape)}. Config and weights are not of the same adapter: restore both."
        )
    raise InputError(
        f"{path}: expected {entry.name} of shape {expected}, as for {outputs} outputs and {inputs} inputs, found "
        f"{quoted(entry.shape)}. The adapter is of another base."
    )


def read_payload(stream: BinaryIO, header: Header, path: Path) -> tuple[bytearray, dict[str, torch.Tensor]]:
    """The payload's bytes, read once, and the tensors that share them.

    Raises:
        IntegrityError: the file has not as many bytes as it had, or a value is NaN or infinite.
    """
    payload = bytearray(header.payload)
    count = 0
    with memoryview(payload) as view:
        while count < len(payload) and (read := stream.readinto(view[count:])):  # type: ignore[attr-defined]
            count += read
    if count < len(payload) or stream.read(1):
        raise IntegrityError(
            f"{path}: expected a payload of {header.payload:,} bytes as when it was opened, found another size. The "
            "file changes while it is read: wait until it is complete, and copy the folder."
        )
    tensors: dict[str, torch.Tensor] = {}
    for entry in header.tensors:
        dtype, values = _DTYPES[entry.dtype], math.prod(entry.shape)
        tensor = torch.frombuffer(payload, dtype=dtype, count=values, offset=entry.begin).reshape(entry.shape)
        if not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(
                f"{path}: expected finite weights, found NaN or infinity in {entry.name}. Training diverged or the "
                "file is damaged: do not use this adapter."
            )
        tensors[entry.name] = tensor
    return payload, tensors


def as_adapter(tensors: Mapping[str, torch.Tensor], config: ForeignConfig) -> LoraAdapter:
    """The tensors as an adapter: A and B by module, with the config's scaling."""
    modules: dict[str, Factors] = {
        name: (tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"])
        for name in config.ranks
    }
    return LoraAdapter({}, modules, config.scaling)


def relative_norms(adapter: LoraAdapter, base: BaseLayers, path: Path) -> dict[str, float]:
    """|s·B·A| / |W| by module (Frobenius, float64), from R x R products: the delta itself is never made.

    Raises:
        InputError: a norm or a value beyond its bound, or an adapter that adds nothing at all.
    """
    norms = {name: _relative_norm(adapter, name, base, path) for name in adapter.modules}
    if not any(norms.values()):
        raise InputError(f"{path}: expected an adapter that changes the base, found every delta to be 0: untrained.")
    return norms


def _relative_norm(adapter: LoraAdapter, name: str, base: BaseLayers, path: Path) -> float:
    A_RI, B_OR = adapter.folded(name)
    for factor, tensor in (("A", A_RI), ("s·B", B_OR)):
        if (largest := float(tensor.abs().max())) > MAX_VALUE:
            raise InputError(
                f"{path}: expected values of at most {MAX_VALUE:,.0f} in magnitude, found {largest:.3g} in {factor} of "
                f"{name}. In half precision its layer would overflow: train it again with a lower rate."
            )
    gram_RR = (B_OR.T.double() @ B_OR.double()) * (A_RI.double() @ A_RI.T.double())  # tr(BᵀB·AAᵀ), both symmetric
    delta, weight = math.sqrt(max(float(gram_RR.sum()), 0.0)), base.weight_norm(name)
    relative = delta / weight if weight else (math.inf if delta else 0.0)
    if not relative <= MAX_RELATIVE_NORM:
        raise InputError(
            f"{path}: expected a delta of at most {MAX_RELATIVE_NORM:g} of its weight's norm, found {relative:.3g} for "
            f"{name}. More of the layer would be adapter than base: train it again with a lower rate or alpha."
        )
    return relative
