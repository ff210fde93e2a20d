"""Rows of CSV and TSV, read by the csv module so that a row that is no CSV costs that row alone.

A quote that is never closed takes in the lines after it. So when a row turns out to be broken, it is its first line
that is refused, and reading goes on at the next one. No line is read more than twice for that: what ends the search for
the closing quote is another quote, and the lines between hold none that is open.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from incremental_llm.feedback.importers.record import MAX_FIELD, Record

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" decodes a byte that is no UTF-8
_BOM = "\ufeff"
_TOO_LONG = "a line"


def read_delimited(stream: BinaryIO, delimiter: str) -> tuple[tuple[str, ...] | None, Iterator[Record]]:
    """The header, None where there is none to use, and the rows under it; their numbers count from 1 after it."""
    csv.field_size_limit(MAX_FIELD)
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(filter(None, rows), None)
    except csv.Error as error:
        return None, _nothing(_broken(error))
    if header is None:
        return None, iter(())
    if wrong := _not_utf8(header, header):
        return None, _nothing(f"{wrong}. Save the file as UTF-8")
    if len(set(header)) < len(header):
        return None, _nothing(f"expected columns of different names, found {header}")
    return tuple(header), _rows(header, lines, rows)


def _rows(header: list[str], lines: _Lines, rows: Iterator[list[str]]) -> Iterator[Record]:
    number = 0
    while True:
        number += 1
        lines.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            lines.go_back()
            yield Record(number, None, _broken(error))
            continue
        if not row:
            yield Record(number, None)
        elif len(row) != len(header):
            over = f" in {lines.of_row} lines, which its quotes hold together" if lines.of_row > 1 else ""
            yield Record(number, None, f"expected {len(header)} columns, found {len(row)}{over}")
        elif wrong := _not_utf8(header, row):
            yield Record(number, None, wrong)
        else:
            yield Record(number, dict(zip(header, row, strict=True)))


class _Lines:
    """Lines of text, which the reader of a row can give back but for the first."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._row: list[str] = []
        self._again: deque[str] = deque()
        self._first = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        self._row.append(line)
        return line

    @property
    def of_row(self) -> int:
        """How many lines the row has so far."""
        return len(self._row)

    def begin_row(self) -> None:
        self._row.clear()

    def go_back(self) -> None:
        """To the second line of the row."""
        self._again.extendleft(reversed(self._row[1:]))

    def _read(self) -> str:
        raw = self._stream.readline(MAX_FIELD + 1)
        if not raw:
            raise StopIteration
        if len(raw) > MAX_FIELD:
            while raw and not raw.endswith(b"\n"):
                raw = self._stream.readline(1 << 20)
            raise csv.Error(f"{_TOO_LONG} of more than {MAX_FIELD} bytes")
        line = raw.decode("utf-8", "surrogateescape")
        if self._first:
            self._first, line = False, line.removeprefix(_BOM)
        return line


def _nothing(reason: str) -> Iterator[Record]:
    return iter((Record(1, None, f"header: {reason}; nothing was read", ends=True),))


def _broken(error: csv.Error) -> str:
    said = str(error)
    if said.startswith("new-line character"):
        return "expected a row of CSV, found a fault in its line ends: a carriage return in a field that is not quoted"
    if said.startswith((_TOO_LONG, "field larger")):
        return f"expected a row of CSV, found {said}"
    return f"expected a row of CSV, found a fault in its quoting ({said}): a quote in a quoted field is written twice"


def _not_utf8(header: list[str], row: list[str]) -> str:
    """What is wrong with the bytes of a row; empty where nothing is."""
    for column, value in zip(header, row, strict=True):
        if found := _NOT_UTF8.search(value):
            return f"expected UTF-8, found byte 0x{ord(found[0]) & 0xFF:02x} in the column {_shown(column)}"
    return ""


def _shown(column: str) -> str:
    return repr(column.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
