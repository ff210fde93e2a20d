"""Files of records, whatever holds them: JSONL, a JSON array, {"data": [...]}, CSV, TSV or Parquet; one at a time.

No file is held in memory: JSON arrays are read by ijson, Parquet by row groups, and gzip is unpacked on the way. A
record that cannot be read is a reason in its place, and where the rest cannot be read after it, it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from incremental_llm.errors import InputError
from incremental_llm.feedback.importers.compressed import DAMAGED, unpacked, up_to_damage
from incremental_llm.feedback.importers.delimited import read_delimited
from incremental_llm.feedback.importers.record import MAX_FIELD, Record
from incremental_llm.strict_json import read_json

MAX_DEPTH = 100
"""Deepest nesting of a JSON document; exports have about ten levels."""

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 512
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class RecordFile:
    """The records of an open file.

    `columns` are those of a table, None where each record has its own. `document` says that one JSON value holds all
    records. `place` tells how many of the file's bytes were read so far.
    """

    records: Iterator[Record]
    columns: tuple[str, ...] | None
    document: bool
    place: Callable[[], int]


def is_table(path: Path) -> bool:
    """Whether rows have columns, by the file's name."""
    return _suffix(path) in (*_TABLES, ".parquet")


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


@contextmanager
def open_records(path: Path) -> Iterator[RecordFile]:
    """The records of a file.

    Raises:
        InputError: the file cannot be read at all.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: expected a file of records, found none to read ({error.strerror}).") from error
    with stream:
        yield _opened(path, stream)


def _opened(path: Path, stream: BinaryIO) -> RecordFile:
    suffix, columns, document = _suffix(path), None, False
    plain = unpacked(path, stream)
    try:
        if suffix == ".parquet":
            if plain is not stream:
                raise InputError(f"{path}: expected Parquet, which is read from its end, found gzip. Unpack it.")
            columns, records = _parquet(stream)
        elif suffix in _TABLES:
            columns, records = read_delimited(plain, _TABLES[suffix])
        else:
            document, records = _json(plain)
    except DAMAGED as error:
        raise InputError(f"{path}: expected a whole gzip file, found otherwise ({error}).") from error
    return RecordFile(up_to_damage(records), columns, document, stream.tell)


def _json(stream: BinaryIO) -> tuple[bool, Iterator[Record]]:
    """JSONL where the first line is a whole object, or a broken one before a whole one; else one JSON value (True)."""
    start = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0
    stream.seek(start)
    first, second = _next_line(stream).strip(), _next_line(stream)
    stream.seek(start)
    goes_on = first.startswith(b"[") or first.endswith((b"[", b"{", b","))
    if _is_object(first) or (not goes_on and _is_object(second)):
        return False, _lines(stream)
    return True, _document(stream, start)


def _next_line(stream: BinaryIO) -> bytes:
    """The next line that is not blank."""
    line = stream.readline(MAX_FIELD + 1)
    while line and not line.strip():
        line = stream.readline(MAX_FIELD + 1)
    return line


def _is_object(line: bytes) -> bool:
    """Whether a line is an object, also one that is refused for a key that stands twice; a page of an API is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not isinstance(found.get("data"), list)


def _lines(stream: BinaryIO) -> Iterator[Record]:
    number = 0
    while raw := stream.readline(MAX_FIELD + 1):
        number += 1
        if len(raw) > MAX_FIELD and not raw.endswith(b"\n"):
            size = len(raw)
            while not raw.endswith(b"\n") and (raw := stream.readline(1 << 20)):
                size += len(raw)
            yield Record(number, None, f"expected at most {MAX_FIELD} bytes in a line, found {size}")
        elif raw.strip():
            yield _line(number, raw)
        else:
            yield Record(number, None)


def _line(number: int, raw: bytes) -> Record:
    try:
        return _record(number, read_json(raw))
    except ValueError as error:
        return Record(number, None, str(error))


def _record(number: int, data: Any) -> Record:
    if isinstance(data, dict):
        return Record(number, data)
    return Record(number, None, f"expected an object, found {type(data).__name__}")


def _document(stream: BinaryIO, start: int) -> Iterator[Record]:
    """The objects of an array, of the array `data` of an object, or the one object that the document is."""
    import ijson

    number = 0
    try:
        where = _place(ijson.parse(_not_deep(ijson.basic_parse(stream))))
        stream.seek(start)
        # Without use_float, since with it an integer above 2**63 would be the end of the file.
        for data in ijson.items(ijson.parse(_not_deep(ijson.basic_parse(stream))), where):
            number += 1
            yield _record(number, _with_floats(data))
    except (ijson.JSONError, UnicodeDecodeError, _TooDeepError) as error:
        said = " ".join(str(error).split())[:200]
        yield Record(number + 1, None, f"expected JSON, found an error ({said}); nothing after it was read", ends=True)


class _TooDeepError(ValueError):
    """JSON whose nesting alone would fill the memory: ijson names the place of every value in full."""


def _not_deep(parsed: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    depth = 0
    for event, value in parsed:
        if event in ("start_map", "start_array"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooDeepError(f"nested more than {MAX_DEPTH} deep")
        elif event in ("end_map", "end_array"):
            depth -= 1
        yield event, value


def _with_floats(data: Any) -> Any:
    """The same data with floats in the place of decimals."""
    if isinstance(data, Decimal):
        return float(data)
    if isinstance(data, dict):
        return {name: _with_floats(value) for name, value in data.items()}
    return [_with_floats(value) for value in data] if isinstance(data, list) else data


def _place(parsed: Iterator[tuple[str, str, Any]]) -> str:
    """Where the records are, as ijson names places."""
    _, first, _ = next(parsed, ("", "", None))
    if first == "start_array":
        return "item"
    for prefix, event, _ in parsed:
        if (prefix, event) == ("data", "start_array"):
            return "data.item"
    return ""


def _parquet(stream: BinaryIO) -> tuple[tuple[str, ...] | None, Iterator[Record]]:
    """The columns, None where there is nothing to read, and the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
    except pa.ArrowException as error:
        return None, iter((_no_parquet(1, error),))
    return tuple(file.schema_arrow.names), _parquet_rows(file)


def _parquet_rows(file: Any) -> Iterator[Record]:
    import pyarrow as pa

    number = 0
    try:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for data in batch.to_pylist():
                number += 1
                yield Record(number, data)
    except (pa.ArrowException, OSError) as error:
        yield _no_parquet(number + 1, error)


def _no_parquet(number: int, error: Exception) -> Record:
    said = " ".join(str(error).split())[:200]
    reason = f"expected a Parquet file, found otherwise ({said}); nothing after it was read"
    return Record(number, None, reason, ends=True)
