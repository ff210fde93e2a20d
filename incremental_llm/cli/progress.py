"""Progress of long work on stderr: bars where there is a terminal, a few lines where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0

Clock = Callable[[], float]


class Progress(Protocol):
    """What long work calls: what is being done, how far it is, of how much (0: unknown), and the loss if it trains."""

    def __call__(self, what: str, done: int, total: int, loss: float | None = None, /) -> None: ...


class PlainProgress:
    """A line when a stage starts, every few seconds while it runs, and when it ends; each with the time elapsed."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._start = clock()
        self._stage: _Stage | None = None

    def __call__(self, what: str, done: int, total: int, loss: float | None = None, /) -> None:
        now = self._clock()
        if self._stage is None or self._stage.what != what:
            self.finish()
            self._stage = _Stage(what, now)
        stage = self._stage
        stage.update(done, total, loss)
        finished = 0 < total <= done
        if stage.said_at is None or now - stage.said_at >= SECONDS_BETWEEN_LINES or (finished and not stage.ended):
            self._say(stage, now, finished)

    def say(self, line: str) -> None:
        """A line that is no progress."""
        self._write(self._clock(), line)

    def finish(self) -> None:
        """End the current stage, if it has not said so itself."""
        stage, self._stage = self._stage, None
        if stage is not None and not stage.ended:
            self._say(stage, self._clock(), True)

    def stop(self) -> None:
        """Say where an error struck."""
        stage, self._stage = self._stage, None
        if stage is not None and not stage.ended:
            self._write(self._clock(), f"stopped during {stage.text}")

    def _say(self, stage: _Stage, now: float, ended: bool) -> None:
        stage.said_at, stage.ended = now, ended
        self._write(now, stage.text + (f", {stage.seconds(now):.1f} s" if ended else ""))

    def _write(self, now: float, line: str) -> None:
        self._stream.write(f"[{now - self._start:7.1f} s] {line}\n")
        self._stream.flush()


class BarProgress:
    """One live bar for the current stage; a line stays for each that ended."""

    def __init__(self, bars: Bars, clock: Clock = time.monotonic) -> None:
        self._bars = bars
        self._clock = clock
        self._stage: _Stage | None = None
        self._task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int, loss: float | None = None, /) -> None:
        if self._stage is None or self._task is None or self._stage.what != what:
            self.finish()
            self._stage = _Stage(what, self._clock())
            self._task = self._bars.add_task(what, total=total or None, loss="")
        self._stage.update(done, total, loss)
        shown = "" if loss is None else f"loss {loss:.4f}"
        self._bars.update(self._task, completed=done, total=total or None, loss=shown)

    def say(self, line: str) -> None:
        """A line that is no progress."""
        self._bars.console.print(line, markup=False, highlight=False)

    def finish(self) -> None:
        """End the current stage."""
        self._leave("", ", {seconds:.1f} s")

    def stop(self) -> None:
        """Say where an error struck."""
        self._leave("stopped during ", " after {seconds:.1f} s")

    def _leave(self, before: str, after: str) -> None:
        stage, task = self._stage, self._task
        self._stage = self._task = None
        if stage is not None and task is not None:
            self._bars.remove_task(task)
            self.say(before + stage.text + after.format(seconds=stage.seconds(self._clock())))


@contextlib.contextmanager
def progress_reporter(stream: TextIO | None = None) -> Iterator[PlainProgress | BarProgress]:
    """A progress callback on `stream` (stderr by default); on an error it names the stage that was cut off."""
    stream = stream or sys.stderr
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Between PEFT and transformers, nothing that a reader of the progress could act on.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        reporter = stack.enter_context(_bars(stream)) if stream.isatty() else PlainProgress(stream)
        try:
            yield reporter
        except BaseException:
            reporter.stop()
            raise
        reporter.finish()


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[BarProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}", markup=False),
    )
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        yield BarProgress(bars)


class _Stage:
    """Where one stage is."""

    def __init__(self, what: str, started: float) -> None:
        self.what = what
        self.started = started
        self.said_at: float | None = None
        self.ended = False
        self.text = what

    def update(self, done: int, total: int, loss: float | None) -> None:
        if done < total:
            self.ended = False  # a stage of the same name began again
        share = f" {done}/{total} ({100 * done / total:.0f} %)" if total > 0 else f" {done}" if done else ""
        self.text = self.what + share + ("" if loss is None else f", loss {loss:.4f}")

    def seconds(self, now: float) -> float:
        return now - self.started
