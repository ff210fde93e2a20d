"""What a failing command says and returns: one message, one exit code, and a traceback only in a file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from incremental_llm.errors import IncrementalError

INTERRUPTED = 130

# typer has no public name for "wrong usage", which it reports itself; it is what a bad parameter is a case of.
_OWN: tuple[type[BaseException], ...] = (typer.Exit, typer.Abort, BrokenPipeError, *typer.BadParameter.__bases__)


_EXPECTED: tuple[type[BaseException], ...] = (*_OWN, IncrementalError)


_NO_SPACE = os.strerror(errno.ENOSPC)  # what Python, safetensors and torch all quote from the system


class CrashError(Exception):
    """An unexpected error whose traceback was written to `path`, if any folder could be written to."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(str(path))
        self.path = path


@contextlib.contextmanager
def crash_log(folder: Path) -> Iterator[None]:
    """Write the traceback of an unexpected error into `folder` and raise CrashError from it."""
    try:
        yield
    except _EXPECTED:
        raise
    except Exception as error:
        raise CrashError(_write_traceback(error, folder)) from error


class ErrorBoundary(TyperGroup):
    """The root group: turns exceptions into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except _OWN:
            raise
        except IncrementalError as error:
            _show_traceback(error, debug)
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted: the same command again resumes.", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except CrashError as crash:
            _report_crash(crash.__cause__ or crash, crash.path, debug)
            raise typer.Exit(1) from crash
        except Exception as error:
            _report_crash(error, _write_traceback(error, None), debug)
            raise typer.Exit(1) from error


def _report_crash(error: BaseException, path: Path | None, debug: bool) -> None:
    _show_traceback(error, debug)
    said = (str(error).strip().splitlines() or [""])[0]
    if _NO_SPACE in str(error):
        typer.echo(
            f"error: the disk is full ({said}). What was committed is intact; free some space, and run the same "
            "command again. `illm doctor` shows the disk.",
            err=True,
        )
        return
    typer.echo(f"error: unexpected {type(error).__name__}: {said}", err=True)
    where = f"is in {path}" if path else "could not be written anywhere"
    typer.echo(f"The traceback {where}; `illm --debug ...` shows it here.", err=True)


def _show_traceback(error: BaseException, debug: bool) -> None:
    if debug:
        import traceback

        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _write_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """In the folder if it can be written, else in the machine's temporary folder, else nowhere."""
    import tempfile
    import traceback
    from datetime import UTC, datetime

    name = f"illm-crash-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.txt"
    text = "".join(traceback.format_exception(error))
    for place in (folder, Path(tempfile.gettempdir())):
        if place is not None and place.is_dir():
            with contextlib.suppress(OSError):
                (place / name).write_text(text, encoding="utf-8")
                return place / name
    return None
