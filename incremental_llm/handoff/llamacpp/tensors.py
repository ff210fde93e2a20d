"""Weights as GGUF stores them: named, typed, and streamed to the file one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import torch

from incremental_llm.adapters.load import DTYPES
from incremental_llm.errors import IntegrityError

FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
}
_TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}

Tensors = Mapping[str, tuple[torch.Tensor, str]]
"""Each tensor and the dtype to write it in (float32, float16 or bfloat16), by its name in GGUF."""


def write_tensors(writer: Any, tensors: Tensors, *, prepared: Callable[[str], torch.Tensor] | None = None) -> None:
    """Write the header and then every tensor, converted one at a time, and close the file.

    Args:
        writer: a gguf.GGUFWriter that has its keys and no tensors yet.
        prepared: the tensor to write under a name, of the same shape, where that is not the one given.

    Raises:
        IntegrityError: a number that its dtype cannot hold.
    """
    for name, (tensor, dtype) in tensors.items():
        size = tensor.numel() * DTYPES[dtype].itemsize
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.int8), size, raw_dtype=_TYPES[dtype])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (tensor, dtype) in tensors.items():
            writer.write_tensor_data(_encoded(name, prepared(name) if prepared else tensor, dtype))
    finally:
        writer.close()


def _encoded(name: str, tensor: torch.Tensor, dtype: str) -> Any:
    """The tensor in `dtype` as numpy holds it: bfloat16, which numpy has not, as its bits."""
    encoded = tensor.detach().cpu().to(DTYPES[dtype]).contiguous()
    if not bool(torch.isfinite(encoded).all()):
        raise IntegrityError(
            f"{name}: expected numbers that {dtype} can hold, found larger ones. Export it in bfloat16 or float32."
        )
    return (encoded.view(torch.int16) if dtype == "bfloat16" else encoded).numpy()
