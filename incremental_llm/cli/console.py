"""What commands print: results on stdout, everything said on the way on stderr.

    result(value)                   JSON of any record, for machines
    table(title, rows)              rows of plain values, for people
    next_steps("illm run")          what to do next
    say("fetching the model")       a line on the way
    confirmed(...)                  a question before something dangerous
    progress_reporter()             the callback of long work, as bars or as lines

With --json, stdout holds one JSON value and nothing else.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime
from pathlib import Path
from typing import Any

import typer

from incremental_llm.cli.progress import PlainProgress, progress_reporter
from incremental_llm.errors import InputError

__all__ = [
    "PlainProgress",
    "command",
    "confirmed",
    "next_steps",
    "plain",
    "progress_reporter",
    "result",
    "say",
    "table",
    "terminal",
    "write",
]

_WIDTH_WITHOUT_TERMINAL = 160


def say(line: str) -> None:
    """A line on stderr."""
    typer.echo(line, err=True)


def write(line: str = "") -> None:
    """A line of the result on stdout."""
    typer.echo(line)


def result(value: Any) -> None:
    """`value` as JSON on stdout; NaN becomes null, which no reader can take for a score."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def next_steps(*steps: str) -> None:
    """The commands that usually follow, on stderr."""
    for number, step in enumerate(steps):
        typer.echo(f"{'next:' if number == 0 else '     '} {step}", err=True)


def command(*words: object) -> str:
    """A command to copy into a shell, whatever its words hold.

    >>> print(command("illm", "chat", "a b; rm x"))
    illm chat 'a b; rm x'
    """
    return shlex.join(map(str, words))


def terminal() -> bool:
    """Whether stdout is a terminal that shows colours."""
    return sys.stdout.isatty()


def table(title: str, rows: Sequence[Mapping[str, Any]], *, empty: str = "none") -> None:
    """Rows with the same keys as a table on stdout; numbers right, the rest left."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return write(f"{title}: {empty}")
    grid = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for key in rows[0]:
        numbers = all(isinstance(row[key], int | float) for row in rows)
        grid.add_column(Text(str(key)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(row[key])) for key in rows[0]))
    if terminal():
        return Console(highlight=False).print(grid)
    page = Console(file=io.StringIO(), width=_WIDTH_WITHOUT_TERMINAL, highlight=False)
    with page.capture() as captured:
        page.print(grid)
    return write("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def confirmed(what: str, *, yes: bool, dry_run: bool, as_json: bool = False) -> bool:
    """Whether to go on with something that changes what users get.

    Raises:
        InputError: nobody can be asked and --yes was not given.
    """
    if dry_run:
        if as_json:
            result({"would": what})
        else:
            write(f"would {what}; nothing was changed (dry run)")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"to {what} without a terminal, expected --yes, found none. Nothing was changed: add --yes.")
    if not typer.confirm(f"{what[0].upper()}{what[1:]}?", err=True):
        say("nothing was changed")
        return False
    return True


def plain(value: Any) -> Any:
    """`value` as JSON types: records as their fields, paths and times as text, sets sorted."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="python"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"expected a value that JSON can hold, found {type(value).__name__}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    found = plain(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
