"""Compressed files, known by their first bytes: gzip is unpacked as it is read, of others it is said what to do."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from incremental_llm.errors import InputError
from incremental_llm.feedback.importers.record import Record

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged gzip file raises."""


def compression(stream: BinaryIO) -> str | None:
    """What a file that stands at its beginning is compressed with; None where it is not."""
    head = stream.read(8)
    stream.seek(0)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def unpacked(path: Path, stream: BinaryIO) -> BinaryIO:
    """The bytes that `stream`, which stands at its beginning, holds compressed.

    Raises:
        InputError: compressed with something else than gzip.
    """
    found = compression(stream)
    if found == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream))
    if found:
        raise InputError(
            f"{path}: expected a plain file or gzip, found {found}. Unpack it first. Nothing of it was imported."
        )
    return stream


def up_to_damage(records: Iterator[Record]) -> Iterator[Record]:
    """The records, and where a gzip file is damaged, that nothing after it could be read."""
    number = 0
    try:
        for record in records:
            number = record.number
            yield record
    except DAMAGED as error:
        reason = f"expected a whole gzip file, found otherwise ({error}); nothing after it was read"
        yield Record(number + 1, None, reason, ends=True)
