"""illm feedback: logs in, and what has come in so far."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli import erase, represent, stream, trace
from incremental_llm.cli.console import next_steps, plain, progress_reporter, result, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.feedback import ImportReport
    from incremental_llm.feedback.importers import Format

app = typer.Typer(help="Take logs in, see what has come in.", no_args_is_help=True)
app.command("consume")(stream.consume)
app.command("parked")(stream.parked)
app.command("trace")(trace.trace)
app.command("erase")(erase.erase)
app.command("represent")(represent.represent)
app.command("held-out")(represent.held_out)

_SHOWN = 20


@app.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Logs and exports: JSONL, JSON, CSV, Parquet.")
    ],
    shape: Annotated[
        str | None,
        typer.Option("--format", help="events, openwebui, langfuse, chat or table; by default the file says it."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="KEY=VALUE", help="Which column is which, such as prompt=question; see docs."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take logs and exports in: every row is added, known already, or refused with its reason."""
    _check(files)
    mapping = _mapping(maps or [])
    with opened(config, overrides) as workspace:
        with progress_reporter() as progress:
            reports = {
                path: workspace.import_feedback(
                    path, partial(progress, f"reading {path}"), format=_format(shape), mapping=mapping, processes=1
                )
                for path in files
            }
        head = workspace.store.head()
    if as_json:
        result({"files": {str(path): plain(report) for path, report in reports.items()}, "head": head})
    else:
        _show(reports)
    if wrong := [f"{path}: {said}" for path, report in reports.items() for said in _wrong(report, shape)]:
        raise InputError("\n".join(wrong))
    if not as_json:
        next_steps("illm dataset show", "illm run")


def _check(files: list[Path]) -> None:
    for path in files:
        if not path.exists():
            raise InputError(f"expected files, found no such file: {path}. Nothing was imported.")
        if not path.is_file():
            raise InputError(
                f"expected files, found a folder, a device or a pipe: {path}. Write what it gives to a file. "
                "Nothing was imported."
            )


def _wrong(report: ImportReport, shape: str | None) -> Iterator[str]:
    """What makes an import fail although what could be taken is in the store."""
    if report.all_refused:
        hint = (
            ""
            if shape or not report.whole
            else " If the file was mistaken for something else, --format says what it is."
        )
        yield f"expected feedback, found not one event.{hint}"
    elif not report.whole:
        yield "expected to read it to its end, found a part that cannot be read. What came before it was imported."
    if report.absent:
        yield (
            f"expected the columns that the mapping names, found no row with {', '.join(report.absent)}. "
            "The rest was imported; correct --map, if it is wrong, and import again."
        )


def _format(name: str | None) -> Format | None:
    from incremental_llm.feedback.importers import FORMATS

    for known in FORMATS:
        if name == known:
            return known
    if name is not None:
        raise InputError(f"--format: expected one of {', '.join(FORMATS)}, found {name!r}. Nothing was imported.")
    return None


def _mapping(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--map: expected KEY=VALUE, such as prompt=question, found {pair!r}.")
        if key.strip() in found:
            raise InputError(f"--map: expected each key once, found {key.strip()!r} twice.")
        found[key.strip()] = value
    return found


def _show(reports: dict[Path, ImportReport]) -> None:
    for path, report in reports.items():
        write(
            f"{path}: {report.rows} rows, {report.taken} taken, {report.blank} blank; "
            f"{report.added} events added, {report.duplicates} known already; {len(report.refused)} refused"
        )
        if report.resumed:
            write(f"  {report.resumed} rows before them were read by an earlier import")
        if not report.whole:
            write("  not read to its end: see the last of its refused rows")
        if report.waiting:
            write(f"  {report.waiting} events in the store wait for an interaction that has not come")
        for kind, count in sorted(report.unknown_types.items()):
            write(f"  kept without being used: {count} of unknown type {kind!r}")
        for refused in report.refused[:_SHOWN]:
            write(f"  {path}:{refused.row}: {refused.reason}")
        if len(report.refused) > _SHOWN:
            write(f"  and {len(report.refused) - _SHOWN} more refused rows (all of them with --json)")


@app.command()
def status(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Count what has come in, what waits, and what no increment has read yet."""
    with opened(config, overrides) as workspace:
        store, registry = workspace.store, workspace.registry
        counts, head, waiting = store.counts(), store.head(), store.waiting()
        production = registry.head("production")
        quarantined = registry.quarantined()
    new = head - production.cursor
    held = sum(seq > production.cursor for seq in quarantined)
    if as_json:
        found = {"events": counts, "head": head, "cursor": production.cursor, "new": new, "waiting": len(waiting)}
        return result({**found, "quarantined": len(quarantined), "new_quarantined": held})
    table("events in the store", [{"type": name, "events": count} for name, count in counts.items()], empty="no events")
    write(f"production is version {production.version}, which has read up to event {production.cursor} of {head}")
    write(f"new since then: {new}, of them {held} quarantined; {len(quarantined)} quarantined in all")
    write(f"waiting for an interaction that has not come: {len(waiting)}")
    for event in waiting[:_SHOWN]:
        write(f"  {event.type} {event.id}")
    if new - held > 0:
        return next_steps("illm dataset show", "illm run")
    return next_steps("illm feedback import FILE.jsonl")
