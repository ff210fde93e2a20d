"""illm feedback consume and parked: events from a Kafka topic, and the messages of it that are none."""

from __future__ import annotations

import base64
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import command, next_steps, plain, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.feedback import ConsumeReport, ParkedMessage

_SHOWN = 20
_SECONDS_BETWEEN_LINES = 5.0
_SHOWN_BYTES = 60


def consume(
    brokers: Annotated[str, typer.Option("--brokers", metavar="HOST:PORT,...", help="Where the cluster is.")],
    topic: Annotated[str, typer.Option("--topic", help="One JSON event a message.")],
    group: Annotated[str, typer.Option("--group", help="Consumers of one group share the partitions.")],
    until_end: Annotated[
        bool, typer.Option("--until-end", help="End when all partitions are read to their end.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--options", metavar="FILE", help="More of librdkafka's options, KEY=VALUE a line.", show_default=False
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="KEY=VALUE", help="One of them; secrets belong in the file.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take events from a Kafka topic, until SIGTERM or Ctrl-C: each is stored once, what is no event is parked."""
    from incremental_llm import feedback

    more = {**_options(_lines(file)), **_options(options or ())}
    settings = feedback.StreamSettings(brokers=brokers, topic=topic, group=group, options=more)
    with opened(config, overrides) as workspace, _told_to_end() as stop:
        lines = _Lines()
        report = feedback.consume(workspace.store, settings, until_end=until_end, stop=stop, progress=lines, say=say)
        head = workspace.store.head()
    if as_json:
        result({**plain(report), "head": head})
    else:
        _show(report)
    if report.messages and report.parked == report.messages:
        raise InputError(
            f"expected events in {topic!r}, found not one: {command('illm', 'feedback', 'parked', '--topic', topic)}"
        )
    if not as_json:
        next_steps(*(["illm feedback parked"] if report.parked else []), "illm feedback status", "illm run")


def parked(
    topic: Annotated[str | None, typer.Option("--topic", help="Of one topic only.", show_default=False)] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the messages of streams that are no events, with reason and place; --json has their bytes in base64."""
    from incremental_llm.feedback import parking

    with opened(config, overrides) as workspace:
        count = parking.parked_count(workspace.store, topic)
        found = parking.parked(workspace.store, topic, None if as_json else _SHOWN)
    if as_json:
        return result({"parked": [_record(one) for one in found]})
    rows = [
        {
            "topic": one.topic,
            "partition": one.partition,
            "offset": one.offset,
            "time": f"{one.time:%Y-%m-%d %H:%M}" if one.time else None,
            "bytes": one.size,
            "begins": (one.value or b"")[:_SHOWN_BYTES].decode("ascii", "backslashreplace"),
            "because": one.reason,
        }
        for one in found
    ]
    table("parked messages", rows)
    if count > len(found):
        write(f"and {count - len(found)} more (all of them with --json)")
    return next_steps(
        "illm feedback parked --json   # key and value in base64",
        "illm feedback import FIXED.jsonl   # put right, as a log",
    )


def _record(one: ParkedMessage) -> dict[str, Any]:
    encoded = {
        name: None if raw is None else base64.b64encode(raw).decode()
        for name, raw in (("key", one.key), ("value", one.value))
    }
    place = {"topic": one.topic, "partition": one.partition, "offset": one.offset, "time": plain(one.time)}
    return {**place, "reason": one.reason, **encoded, "size": one.size, "digest": one.digest}


def _show(report: ConsumeReport) -> None:
    write(
        f"{report.messages} messages: {report.added} added, {report.duplicates} known already, {report.parked} parked"
        + ("" if report.lag is None else f"; lag {report.lag}")
    )
    if report.waiting:
        write(f"  {report.waiting} events in the store wait for an interaction that has not come")
    if report.deleted:
        write(f"  {report.deleted} messages were deleted at the brokers before they were read")


class _Lines:
    """A line on stderr every few seconds while messages come, with their rate since the line before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at, self._messages = clock(), 0

    def __call__(self, report: ConsumeReport) -> None:
        now = self._clock()
        new, seconds = report.messages - self._messages, now - self._at
        if seconds < _SECONDS_BETWEEN_LINES or not new:
            return
        lag = "unknown" if report.lag is None else report.lag
        say(f"{report.messages} messages, {new / seconds:.0f} a second, lag {lag}, {report.parked} parked")
        self._at, self._messages = now, report.messages


def _lines(file: Path | None) -> list[str]:
    """The lines of an option file that say something; Kafka's own client.properties is one."""
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a text file with KEY=VALUE a line, found none ({error}).") from error
    return [line for line in lines if line and not line.startswith(("#", "!"))]


def _options(lines: list[str] | tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE lines; what is wrong is shown without what may be a secret."""
    pairs = [line.partition("=") for line in lines]
    if wrong := [number for number, (key, sign, _) in enumerate(pairs, 1) if not sign or not key.strip()]:
        raise InputError(f"expected KEY=VALUE as each option, found something else as number {wrong[0]}.")
    return {key.strip(): value.strip() for key, _, value in pairs}


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Set by the first SIGTERM or Ctrl-C; the second one ends at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def tell(number: int, _frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop.set()
        say("told to end: after the batch at hand")

    try:
        for number in before:
            signal.signal(number, tell)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
