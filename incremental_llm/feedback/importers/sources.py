"""Import of a file in any known shape: what it is, how its records are read, and how they get into the store.

    report = import_file(store, Path("feedbacks.json"))    # its first record says what it is
    report = import_file(store, Path("log.csv"), mapping={"prompt": "question", "reply": "answer"})

Events of other tools have ids made of the tool's own and of their content, so an import can be repeated: what is stored
already is a duplicate. A batch of records is one transaction with the reasons of what it refused.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from incremental_llm.errors import InputError
from incremental_llm.feedback.events import Event, EventError
from incremental_llm.feedback.importers import langfuse, openwebui, rows
from incremental_llm.feedback.importers.jsonl import import_jsonl
from incremental_llm.feedback.importers.record import Record
from incremental_llm.feedback.importers.records import is_table, open_records
from incremental_llm.feedback.importers.report import ImportReport, Progress, Totals
from incremental_llm.feedback.importers.rows import Columns, Fallbacks, flattened
from incremental_llm.feedback.importers.shapes import Verdicts
from incremental_llm.feedback.store import FeedbackStore, ImportMark, ImportStep

Format = Literal["events", "openwebui", "langfuse", "chat", "table"]
FORMATS: tuple[Format, ...] = get_args(Format)

BATCH_RECORDS = 500

_LOOKS: dict[Format, Callable[[Mapping[str, Any]], bool]] = {
    "openwebui": openwebui.looks_like,
    "langfuse": langfuse.looks_like,
    "chat": rows.looks_like_chat,
}

Converted = Iterable[Event | EventError]
Convert = Callable[[Mapping[str, Any]], Converted]
"""The events of a record, and what in it is none; raises EventError where nothing of it can be used."""


@dataclass(frozen=True)
class Mapped:
    """What a mapping says: columns of rows, what stands in for absent ones, verdicts, and names of scores."""

    columns: Columns
    fallbacks: Fallbacks
    verdicts: Verdicts
    scores: tuple[str, ...] = ()


_LISTS = ("up", "down", "none", "scores")
_KEYS: dict[Format, tuple[str, ...]] = {
    "events": (),
    "openwebui": (),
    "langfuse": _LISTS,
    "chat": (*Columns.model_fields, "default_user", "default_time", *_LISTS[:3]),
    "table": (*Columns.model_fields, "default_user", "default_time", *_LISTS[:3]),
}


def import_file(
    store: FeedbackStore,
    path: Path,
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    processes: int = 0,
) -> ImportReport:
    """Import a file; without `format` its name and its first record say what it is.

    `mapping` names columns (`Columns`), `default_user` and `default_time` for rows without (`Fallbacks`), the values of
    a verdict as `up`, `down` and `none`, separated by commas (`Verdicts`), and Langfuse's `scores` that are feedback.
    For `processes` see `import_jsonl`.

    Raises:
        InputError: the file cannot be read or recognised, or the mapping does not fit it; nothing was imported. In
            JSON each record has its own columns: there a mapping that never fitted is in the report (`absent`).
    """
    path = Path(path)
    shape = format or format_of(path)
    told = _mapped(shape, mapping or {})
    if shape == "events":
        return import_jsonl(store, path, progress=progress, processes=processes)
    return _import(store, path, shape, told, progress)


def format_of(path: Path) -> Format:
    """What a file holds, by its name and its first record.

    Raises:
        InputError: the file cannot be read, or it is JSON of no known shape.
    """
    if is_table(path):
        return "table"
    with open_records(path) as opened:
        seen = list(itertools.islice(opened.records, 100))
    first = next((record.data for record in seen if record.data), None)
    for shape, known in _LOOKS.items():
        if first is not None and known(first):
            return shape
    if opened.document and not any(record.ends for record in seen):
        raise InputError(
            f"{path}: expected records of {', '.join(_LOOKS)}, found JSON with {_shown(first)}. Say with --format what "
            "it is; events are one object a line, which `jq -c '.[]'` makes of a list."
        )
    return "events"  # whatever it is, that import says what is wrong with it, line by line


def _shown(record: Mapping[str, Any] | None) -> str:
    return "no objects" if record is None else f"records that hold {', '.join(sorted(record)[:10])}"


def _import(store: FeedbackStore, path: Path, shape: Format, told: Mapped, progress: Progress | None) -> ImportReport:
    convert = _converter(shape, told)
    source, size = str(path.resolve()), path.stat().st_size if path.exists() else 0
    total, whole = Totals(), True
    absent: frozenset[str] | None = None  # until there is a record
    with open_records(path) as opened, store.kept_open():
        if opened.columns is not None and (missing := told.columns.named - set(opened.columns)):
            raise InputError(
                f"{path}: expected the columns that the mapping names, found none called {', '.join(sorted(missing))}. "
                f"There are: {', '.join(sorted(opened.columns))}."
            )
        store.append((), step=ImportStep(_mark(source, 0)))  # forgets what another state of the file had refused
        for batch in _batches(opened.records):
            _store(store, batch, convert, source, total)
            whole = whole and not any(record.ends for record in batch)
            for record in batch:
                if record.data and opened.columns is None:
                    absent = (told.columns.named if absent is None else absent).difference(flattened(record.data))
            if progress is not None:
                progress(opened.place(), size)
    report = total.report(store, store.refused_lines(source))
    return replace(report, whole=whole, absent=tuple(sorted(absent or ())))


def _store(store: FeedbackStore, batch: list[Record], convert: Convert, source: str, total: Totals) -> None:
    """Store a batch of records in one transaction."""
    events: list[Event] = []
    numbers: list[int] = []
    refused: dict[int, str] = {}
    for record in batch:
        found, reasons = _events(record, convert)
        events += found
        numbers += [record.number] * len(found)
        if reasons:
            refused[record.number] = "; ".join(reasons)
    step = ImportStep(_mark(source, batch[-1].number), tuple(numbers), refused)
    blank = sum(record.data is None and not record.reason for record in batch)
    total.add(len(batch), blank, numbers, store.append(events, step=step))


def _events(record: Record, convert: Convert) -> tuple[list[Event], list[str]]:
    """The events of a record, and the reasons for what it holds besides."""
    if record.data is None:
        return [], [record.reason] if record.reason else []
    events: list[Event] = []
    reasons: list[str] = []
    try:
        for found in convert(record.data):
            if isinstance(found, EventError):
                reasons.append(str(found))
            else:
                events.append(found)
    except EventError as error:
        return [], [str(error)]
    return events, reasons


def _converter(shape: Format, told: Mapped) -> Convert:
    match shape:
        case "openwebui":
            return openwebui.events_of
        case "langfuse":
            return lambda record: langfuse.events_of(record, told.scores, told.verdicts)
        case _:
            return lambda record: rows.events_of(record, shape, told.columns, told.fallbacks, told.verdicts)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(itertools.islice(records, BATCH_RECORDS)):
        yield batch


def _mark(source: str, number: int) -> ImportMark:
    """How far a file was imported, in records: without a digest of bytes, so that no import of lines goes on there."""
    return ImportMark(source, number, number, "")


def _mapped(shape: Format, mapping: Mapping[str, str]) -> Mapped:
    known = _KEYS[shape]
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f", did you mean {near[0]!r}?" if near else f": a file of {shape} maps {', '.join(known) or 'nothing'}."
            )
            raise InputError(f"mapping: unknown key {key!r}{hint}")
    lists = {key: tuple(part.strip() for part in mapping[key].split(",")) for key in _LISTS if key in mapping}
    try:
        return Mapped(
            columns=Columns(**{key: value for key, value in mapping.items() if key in Columns.model_fields}),
            fallbacks=Fallbacks(user=mapping.get("default_user"), time=mapping.get("default_time")),
            verdicts=_verdicts(lists),
            scores=lists.get("scores", ()),
        )
    except ValidationError as error:
        raise InputError(f"mapping: {error.errors()[0]['msg']}.") from error


def _verdicts(lists: Mapping[str, tuple[str, ...]]) -> Verdicts:
    """The given values; what is given for one verdict is taken out of the others, so that `--map down=1` works."""
    given = {key: values for key, values in lists.items() if key in Verdicts.model_fields}
    named = {value.casefold() for values in given.values() for value in values}
    usual = Verdicts()
    rest = {
        key: tuple(value for value in getattr(usual, key) if value not in named)
        for key in Verdicts.model_fields
        if key not in given
    }
    return Verdicts(**rest, **given)
