"""Import of event logs as JSONL: streaming, idempotent, resumable; a bad line is reported and the rest goes in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from incremental_llm.errors import InputError
from incremental_llm.feedback.encode import Encoded, encode_line
from incremental_llm.feedback.events import EVENT_MODELS, EventError
from incremental_llm.feedback.importers.compressed import compression
from incremental_llm.feedback.importers.lines import Block, LineReader, in_order
from incremental_llm.feedback.importers.report import ImportReport, Progress, Totals
from incremental_llm.feedback.store import FeedbackStore, ImportMark, ImportStep

BATCH_LINES = 5000
BATCH_BYTES = 8 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024 * 1024
PROCESSES_FROM_BYTES = 32 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass
class _Batch:
    """A block of lines as they are parsed: `numbers` are the lines of `events`."""

    lines: int
    events: list[Encoded] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    blank: int = 0


def import_jsonl(
    store: FeedbackStore, path: Path, *, progress: Progress | None = None, processes: int = 0
) -> ImportReport:
    """Import one event a line; the same call again continues where the last one ended.

    Lines end with "\\n" only. Every batch is one transaction that also records the file's digest so far and the place
    in it; a file that was changed before that place is read from the top, which adds nothing twice. A last line without
    its end is read, but read again next time: it may still be being written.

    `processes` read the lines of a large file while this one stores them. They are started anew, so a script that asks
    for them guards its own work with `if __name__ == "__main__"`.

    Raises:
        InputError: the file cannot be read, or is compressed.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, store.kept_open():
            if found := compression(stream):
                raise InputError(
                    f"{path}: expected an event log that is not compressed, since an import goes on where the last one "
                    f"ended; found {found}. Unpack it, such as with gunzip --keep; nothing of it was imported."
                )
            return _import(store, path, stream, progress, processes)
    except OSError as error:
        raise InputError(
            f"{path}: expected an event log (JSONL), found no readable file ({error.strerror})."
        ) from error


def _import(
    store: FeedbackStore, path: Path, stream: BinaryIO, progress: Progress | None, processes: int
) -> ImportReport:
    size = path.stat().st_size
    mark, digest = _resume(store, str(path.resolve()), stream)
    total = _LogTotals()
    if mark.offset == 0:
        store.append((), step=ImportStep(mark))  # forgets the lines refused in an older state of the file
    reader = LineReader(stream, digest, mark.offset, mark.lines, MAX_LINE_BYTES)
    workers = processes if size - mark.offset >= PROCESSES_FROM_BYTES else 0
    for block, batch in in_order(_parsed, reader.blocks(BATCH_LINES, BATCH_BYTES), workers):
        after = block.after
        step = None if after is None else ImportMark(mark.source, after.offset, after.lines, after.digest)
        total.store(store, batch, step)
        if progress is not None:
            progress(block.end, size)
    refused = dict(store.refused_lines(mark.source)) | total.open_refused
    return replace(
        total.report(store, sorted(refused.items())),
        unknown_types=dict(sorted(total.unknown.items())),
        resumed=mark.lines,
        taken_before=_any_taken(stream, mark.lines, refused),
    )


def _any_taken(stream: BinaryIO, lines: int, refused: Mapping[int, str]) -> bool:
    """Whether one of the first lines is neither blank nor refused; reads up to that one."""
    stream.seek(0)
    reader = LineReader(stream, hashlib.sha256(), 0, 0, MAX_LINE_BYTES)
    for block in reader.blocks(100, BATCH_BYTES):
        for number, line in enumerate(block.lines, block.first):
            if number > lines:
                return False
            if number not in refused and not (isinstance(line, bytes) and line.isspace()):
                return True
    return False


@dataclass
class _LogTotals(Totals):
    """With what a log of events has besides."""

    unknown: Counter[str] = field(default_factory=Counter)
    open_refused: dict[int, str] = field(default_factory=dict)

    def store(self, store: FeedbackStore, batch: _Batch, mark: ImportMark | None) -> None:
        """Store a batch; without a mark it is the last line without its end, which is not remembered."""
        step = None if mark is None else ImportStep(mark, tuple(batch.numbers), batch.refused)
        report = store.append(batch.events, step=step)
        if mark is None:
            self.open_refused = batch.refused | {batch.numbers[r.position]: r.reason for r in report.refused}
        self.add(batch.lines, batch.blank, batch.numbers, report)
        self.unknown.update(event.type for event in batch.events if event.type not in EVENT_MODELS)


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


def _parsed(block: Block) -> _Batch:
    batch = _Batch(lines=len(block.lines))
    for number, line in enumerate(block.lines, block.first):
        if isinstance(line, int):
            batch.refused[number] = f"expected at most {MAX_LINE_BYTES} bytes in a line, found {line}"
        elif line.isspace():
            batch.blank += 1
        else:
            try:
                batch.events.append(encode_line(line.removeprefix(_BOM) if number == 1 else line))
                batch.numbers.append(number)
            except EventError as error:
                batch.refused[number] = str(error)
    return batch
