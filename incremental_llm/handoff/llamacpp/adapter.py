"""A LoRA adapter as GGUF, and back.

Shapes: R rank, I inputs, O outputs; H heads, D numbers of a head.

llama.cpp adds (alpha / R)·B·A, one alpha for all modules (src/llama-adapter.h), so all are written at one rank with
alpha equal to it. A tensor's shape is told fastest dimension first there: lora_a is (I, R), lora_b is (R, O).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import torch

from incremental_llm.adapters.lora import Factors, LoraAdapter
from incremental_llm.adapters.merge import padded
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff.llamacpp.architecture import Architecture, architecture_of
from incremental_llm.handoff.llamacpp.tensors import FILE_TYPES, write_tensors

_ALPHA = gguf.Keys.Adapter.LORA_ALPHA
_KEYS = {gguf.Keys.General.TYPE: "adapter", gguf.Keys.Adapter.TYPE: "lora"}


def write_adapter_gguf(path: Path, adapter: LoraAdapter, config: Any, *, dtype: str, name: str) -> None:
    """Write an adapter for a base with this transformers `config`; every module at the adapter's largest rank.

    Raises:
        InputError: an architecture that is not written, or a module that GGUF has no place for.
        IntegrityError: a number that `dtype` cannot hold.
    """
    architecture = architecture_of(config)
    if config.tie_word_embeddings and "lm_head" in adapter.modules:
        raise InputError("lm_head: expected a head of its own, found one tied to the embedding, which GGUF leaves out.")
    rank = max(adapter.ranks.values())
    level = padded(adapter, rank)
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(_ALPHA, float(rank))
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    tensors: dict[str, tuple[torch.Tensor, str]] = {}
    for module in sorted(level.modules):
        A_RI, B_OR = level.folded(module)
        order = architecture.row_order(module)
        place = architecture.tensor_name(f"{module}.weight")
        tensors[f"{place}.lora_a"] = (A_RI, dtype)
        tensors[f"{place}.lora_b"] = (B_OR if order is None else B_OR[order], dtype)
    write_tensors(writer, tensors)


def read_adapter_gguf(path: Path, config: Any, modules: Iterable[str]) -> LoraAdapter:
    """The adapter in a GGUF file, its rows in transformers' order again.

    Args:
        config: of the base, as transformers has it.
        modules: the names of the base's linear layers, to find the adapter's among.

    Raises:
        IntegrityError: not a LoRA adapter for this architecture, or half a pair.
    """
    architecture = architecture_of(config)
    reader = gguf.GGUFReader(path)
    expected = {**_KEYS, gguf.Keys.General.ARCHITECTURE: architecture.name}
    for key, value in expected.items():
        found = reader.fields[key].contents() if key in reader.fields else None
        if found != value:
            raise IntegrityError(f"{path}: expected {key} = {value!r}, found {found!r}.")
    tensors = {tensor.name: _values(tensor) for tensor in reader.tensors}
    alpha = float(reader.fields[_ALPHA].contents())
    factors: dict[str, Factors] = {}
    for module in modules:
        place = f"{architecture.tensor_name(module)}.weight"
        pair = [tensors.pop(f"{place}.lora_{half}", None) for half in "ab"]
        if pair[0] is not None and pair[1] is not None:
            factors[module] = (pair[0], _transformers_rows(architecture, module, pair[1]))
        elif pair != [None, None]:
            raise IntegrityError(f"{path}: expected lora_a and lora_b of {place}, found one of them.")
    if tensors:
        raise IntegrityError(f"{path}: expected weights of the base's layers alone, found {', '.join(tensors)}.")
    return LoraAdapter({}, factors, {module: alpha / A_RI.shape[0] for module, (A_RI, _) in factors.items()})


def _values(tensor: Any) -> torch.Tensor:
    """Its numbers in fp32; numpy has the slowest dimension first, as torch."""
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())


def _transformers_rows(architecture: Architecture, module: str, B_OR: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbours back to two halves; written apart from `Architecture.row_order`, which it undoes."""
    if not architecture.rotates_neighbours or not module.endswith(("q_proj", "k_proj")):
        return B_OR
    pairs_HD2R = B_OR.reshape(-1, architecture.head_dim // 2, 2, B_OR.shape[1])
    return torch.cat([pairs_HD2R[:, :, 0], pairs_HD2R[:, :, 1]], dim=1).reshape(B_OR.shape)
