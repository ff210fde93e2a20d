"""Digests of the tensors in a safetensors file, read as bytes: what is damaged can be named, without torch.

Format: 8 bytes with the header's length (little endian), the header in JSON ({tensor: {dtype, shape, data_offsets}}),
the data. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself."""
_CHUNK = 1 << 20


def tensor_digests(path: Path) -> dict[str, str]:
    """Tensor -> sha256 of its dtype, shape and bytes.

    Raises:
        ValueError: not a safetensors file, or one that was cut off.
    """
    with path.open("rb") as stream:
        header, start = _read_header(stream)
        return {name: _digest(stream, name, info, start) for name, info in sorted(header.items())}


def damaged_tensors(path: Path, expected: Mapping[str, str]) -> tuple[str, ...]:
    """Tensors that are not what they were, by name; `its header` where nothing can be told apart any more."""
    try:
        found = tensor_digests(path)
    except (OSError, ValueError):
        return ("its header",)
    return tuple(name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name))


def _read_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= LONGEST_HEADER:
        raise ValueError(f"expected a header of 2 to {LONGEST_HEADER} bytes, found {length}")
    header = json.loads(stream.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError(f"expected a header of names, found {type(header).__name__}")
    return {name: info for name, info in header.items() if name != "__metadata__"}, 8 + length


def _digest(stream: BinaryIO, name: str, info: Any, start: int) -> str:
    try:
        begin, end = map(int, info["data_offsets"])
        hasher = hashlib.sha256(json.dumps([info["dtype"], info["shape"]]).encode())
    except (KeyError, TypeError) as error:
        raise ValueError(f"tensor {name}: expected dtype, shape and data_offsets, found {info!r}") from error
    stream.seek(start + begin)
    left = end - begin
    while left > 0:
        block = stream.read(min(_CHUNK, left))
        if not block:
            raise ValueError(f"tensor {name}: expected {end - begin} bytes, found a file that ends before")
        hasher.update(block)
        left -= len(block)
    return hasher.hexdigest()
