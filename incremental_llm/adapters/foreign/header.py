"""The header of a safetensors file, read by ourselves before any library sees the file.

Layout: 8 bytes N (little endian), N bytes of JSON, then the payload. The JSON names for each tensor its dtype, shape
and [begin, end) in the payload (huggingface/safetensors, README, "Format").

The one design fact: the payload has to be tiled by its tensors, each of exactly the bytes of its shape: no hole can
hold something else, no two tensors share bytes, and no number can stand for more memory than the file has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from incremental_llm.adapters.foreign.folder import read_exactly
from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.strict_json import deeper, read_json

BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that LoRA weights may have, and bytes a value."""


_MOST_SIDES = 8
"""With sides below 2**63, their product stays a number that can be written down."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header; `begin` and `end` count bytes of the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """Tensors in the order of their bytes, the payload's size, and the bytes of the file that were read for it."""

    tensors: tuple[TensorEntry, ...]
    payload: int
    raw: bytes


def read_header(stream: BinaryIO, size: int, path: Path, *, largest: int, most: int) -> Header:
    """Read and check the header; the stream is then at the payload.

    Args:
        size: of the file, in bytes.
        largest: bytes the header may have. It is compared before they are read.
        most: tensors it may name.

    Raises:
        InputError: a header or number of tensors beyond the limits, or a dtype that no LoRA has.
        IntegrityError: anything else that is not exactly the format.
    """
    if size < 8:
        raise IntegrityError(f"{path}: expected safetensors, found {size} bytes. The file is cut short: copy it again.")
    length = read_exactly(stream, 8, path)
    announced = int.from_bytes(length, "little")
    if announced > largest:
        raise InputError(
            f"{path}: expected a safetensors header of at most {largest:,} bytes, more than any LoRA for this base "
            f"needs, found one that claims {announced:,}. It is no safetensors file, or made to fill the memory."
        )
    if announced > size - 8:
        raise IntegrityError(
            f"{path}: expected a header of {announced:,} bytes, as it says, found {size - 8:,} to the end of the file. "
            "The file is cut short: copy it again."
        )
    text = read_exactly(stream, announced, path)
    tensors = _entries(_parsed(text, path), path, most)
    payload = size - 8 - announced
    _require_tiled(tensors, payload, path)
    return Header(tensors, payload, length + text)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        if not text.startswith(b"{"):
            raise ValueError("expected it to begin with {, found " + quoted(text[:8]))
        header = read_json(text)
        if deeper(header, 3):
            raise ValueError("expected JSON of tensors, found it nested more than 3 deep")
    except ValueError as error:
        raise IntegrityError(f"{path}: the header: {error}. Save the adapter again.") from error
    found: dict[str, Any] = header
    notes = found.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise IntegrityError(
            f"{path}: expected __metadata__ to hold text, found {quoted(notes)}. Save the adapter again."
        )
    return found


def _entries(header: dict[str, Any], path: Path, most: int) -> tuple[TensorEntry, ...]:
    if len(header) > most:
        raise InputError(
            f"{path}: expected at most {most} tensors, A and B of every linear layer of the base, found {len(header)}. "
            "It is not a LoRA for this base."
        )
    entries = (_entry(name, value, path) for name, value in header.items())
    return tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end)))


def _entry(name: str, value: Any, path: Path) -> TensorEntry:
    def wrong(expected: str, found: Any) -> IntegrityError:
        return IntegrityError(
            f"{path}: {quoted(name)}: expected {expected}, found {quoted(found)}. Save the adapter again."
        )

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("dtype, shape and data_offsets", value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_OF:
        raise InputError(
            f"{path}: {quoted(name)}: expected values in {', '.join(BYTES_OF)}, found dtype {quoted(dtype)}. "
            "Save the adapter in one of them."
        )
    if not isinstance(shape, list) or len(shape) > _MOST_SIDES or not all(_counts(side) and side > 0 for side in shape):
        raise wrong(f"a shape of at most {_MOST_SIDES} numbers above 0", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_counts(at) for at in offsets):
        raise wrong("data_offsets of two whole numbers from 0, below 2**63", offsets)
    if offsets[1] < offsets[0]:
        raise wrong("data_offsets that end after they begin", offsets)
    needed = math.prod(shape) * BYTES_OF[dtype]
    if offsets[1] - offsets[0] != needed:
        raise wrong(f"data_offsets {needed:,} bytes apart for {dtype} of its shape", offsets)
    return TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _require_tiled(tensors: tuple[TensorEntry, ...], payload: int, path: Path) -> None:
    at = 0
    for entry in tensors:
        if entry.end > payload:
            raise IntegrityError(
                f"{path}: {quoted(entry.name)}: expected its bytes within the {payload:,} of the payload, found that "
                f"they end at {entry.end:,}: outside the file. It is cut short: copy it again."
            )
        if entry.begin != at:
            what = "a hole before it" if entry.begin > at else "that it overlaps another tensor"
            raise IntegrityError(
                f"{path}: {quoted(entry.name)}: expected its bytes to begin at {at:,}, found {entry.begin:,}: {what}. "
                "Save the adapter again."
            )
        at = entry.end
    if at != payload:
        raise IntegrityError(
            f"{path}: expected the file to end with its last tensor, found {payload - at:,} bytes after it that belong "
            "to none. Save the adapter again."
        )
