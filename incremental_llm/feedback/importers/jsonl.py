"""Import of event logs as JSONL: streaming, idempotent, resumable; a bad line is reported and the rest goes in."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from incremental_llm.errors import InputError
from incremental_llm.feedback.events import Event, EventError, UnknownEvent, read_event
from incremental_llm.feedback.importers.report import ImportReport, Progress, RefusedRow
from incremental_llm.feedback.store import FeedbackStore, ImportMark, ImportStep

BATCH_LINES = 1000
MAX_LINE_BYTES = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass
class _Batch:
    """A batch of lines as they are parsed: `numbers` are the lines of `events`."""

    lines: int
    events: list[Event] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    blank: int = 0

    def add(self, number: int, raw: bytes) -> None:
        if not raw.strip():
            self.blank += 1
            return
        try:
            self.events.append(read_event(raw))
            self.numbers.append(number)
        except EventError as error:
            self.refused[number] = str(error)


def import_jsonl(store: FeedbackStore, path: Path, *, progress: Progress | None = None) -> ImportReport:
    """Import one event a line; the same call again continues where the last one ended.

    Lines end with "\\n" only. Every batch is one transaction that also records the file's digest so far and the place
    in it; a file that was changed before that place is read from the top, which adds nothing twice. A last line without
    its end is read, but read again next time: it may still be being written.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _import(store, path, stream, progress)
    except OSError as error:
        raise InputError(
            f"{path}: expected an event log (JSONL), found no readable file ({error.strerror})."
        ) from error


def _import(store: FeedbackStore, path: Path, stream: BinaryIO, progress: Progress | None) -> ImportReport:
    size = path.stat().st_size
    mark, digest = _resume(store, str(path.resolve()), stream)
    start, total = mark.lines, _Totals()
    if mark.offset == 0:
        store.append((), step=ImportStep(mark))  # forgets the lines refused in an older state of the file
    reader = _Reader(stream, digest)
    while batch := list(itertools.islice(reader, BATCH_LINES)):
        whole = [line for line in batch if line.whole]
        read = sum(line.size for line in whole)
        done = ImportMark(mark.source, mark.offset + read, mark.lines + len(whole), reader.digest.hexdigest())
        total.add(store, _parsed(whole, mark.lines + 1), done)
        if len(whole) < len(batch):
            total.add(store, _parsed(batch[len(whole) :], done.lines + 1), None)
        mark = done
        if progress is not None:
            progress(stream.tell(), size)
    refused = dict(store.refused_lines(mark.source)) | total.open_refused
    return ImportReport(
        rows=total.rows,
        taken=total.taken,
        added=total.added,
        duplicates=total.duplicates,
        waiting=store.waiting_count(),
        unknown_types=dict(sorted(total.unknown.items())),
        refused=tuple(RefusedRow(line, reason) for line, reason in sorted(refused.items())),
        blank=total.blank,
        resumed=start,
    )


@dataclass
class _Totals:
    """What was read in this call."""

    rows: int = 0
    taken: int = 0
    added: int = 0
    duplicates: int = 0
    blank: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    open_refused: dict[int, str] = field(default_factory=dict)

    def add(self, store: FeedbackStore, batch: _Batch, mark: ImportMark | None) -> None:
        """Store a batch; without a mark it is the last line without its end, which is not remembered."""
        step = None if mark is None else ImportStep(mark, tuple(batch.numbers), batch.refused)
        report = store.append(batch.events, step=step)
        if mark is None:
            self.open_refused = batch.refused | {batch.numbers[r.position]: r.reason for r in report.refused}
        self.rows += batch.lines
        self.taken += len(batch.events) - len(report.refused)
        self.added += report.added
        self.duplicates += report.duplicates
        self.blank += batch.blank
        self.unknown.update(event.type for event in batch.events if isinstance(event, UnknownEvent))


def _resume(store: FeedbackStore, source: str, stream: BinaryIO) -> tuple[ImportMark, hashlib._Hash]:
    """The stored mark when the file still begins with what it covers, otherwise the top; `stream` stands there."""
    mark = store.mark(source)
    digest = hashlib.sha256()
    if mark is not None:
        left = mark.offset
        while left and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if not left and digest.hexdigest() == mark.digest:
            return mark, digest
    stream.seek(0)
    empty = hashlib.sha256()
    return ImportMark(source, 0, 0, empty.hexdigest()), empty


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with its end, of `size` bytes: `raw` is None where that is too many, `whole` false where the end lacks."""

    raw: bytes | None
    size: int
    whole: bool


class _Reader:
    """Lines of a stream; `digest` covers all whole ones that were read. A huge line is passed over in pieces."""

    def __init__(self, stream: BinaryIO, digest: hashlib._Hash) -> None:
        self._stream = stream
        self.digest = digest

    def __iter__(self) -> Iterator[_Line]:
        while raw := self._stream.readline(MAX_LINE_BYTES + 1):
            size, digest, first = len(raw), self.digest.copy(), raw
            digest.update(raw)
            while not raw.endswith(b"\n") and (raw := self._stream.readline(1 << 20)):
                size += len(raw)
                digest.update(raw)
            whole = raw.endswith(b"\n")
            if whole:
                self.digest = digest
            yield _Line(first if size <= MAX_LINE_BYTES else None, size, whole)


def _parsed(lines: Sequence[_Line], first: int) -> _Batch:
    batch = _Batch(lines=len(lines))
    for number, line in enumerate(lines, first):
        if line.raw is None:
            batch.refused[number] = f"expected at most {MAX_LINE_BYTES} bytes in a line, found {line.size}"
        else:
            batch.add(number, line.raw.removeprefix(_BOM) if number == 1 else line.raw)
    return batch
