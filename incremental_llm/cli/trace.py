"""illm feedback trace: where feedback went, and what came from where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import command, next_steps, result, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.trace import EventTrace, ExampleTrace, IncrementTrace, PersonTrace

KINDS = ("event", "user", "increment", "example")

_SHOWN = 20


def trace(
    kind: Annotated[str, typer.Argument(help="event, user (or reviewer), increment or example.")],
    name: Annotated[str, typer.Argument(help="Its id; the version of an increment, such as 3 or production.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow feedback both ways: from an event or a user to adapters and versions, and back from these."""
    from incremental_llm import trace as traces

    if kind not in KINDS:
        raise InputError(f"trace: expected one of {', '.join(KINDS)}, found {kind!r}.")
    found: EventTrace | PersonTrace | IncrementTrace | ExampleTrace
    with opened(config, overrides) as workspace:
        registry, store = workspace.registry, workspace.store
        if kind == "event":
            found = traces.trace_event(registry, store, name)
        elif kind == "user":
            found = traces.trace_person(registry, store, name)
        elif kind == "increment":
            found = traces.trace_increment(registry, name)
        else:
            found = traces.trace_example(registry, name)
    if as_json:
        return result(found)
    if isinstance(found, traces.EventTrace):
        return _event(name, found)
    if isinstance(found, traces.PersonTrace):
        return _person(found)
    return _increment(found) if isinstance(found, traces.IncrementTrace) else _example(found)


def _event(name: str, found: EventTrace) -> None:
    place = "not in the log any more" if not found.event else f"number {found.seq}" if found.seq else "waiting"
    write(f"event {name}: {place}")
    for key, value in found.event.items():
        write(f"  {key}: {_short(value)}")
    _rows("events about it", [{"event": one.id, "type": one.type} for one in found.about])
    _rows("in increments and attempts", [_sighting(one) for one in found.sightings])
    made = [{"example": one.example[:12], "kind": one.kind, "version": one.version} for one in found.examples]
    _rows("examples made from it", made)
    _held(found.held_by)
    next_steps(*(f"illm feedback trace increment {version}" for version in found.held_by[:1]))


def _person(found: PersonTrace) -> None:
    write(f"{found.person}: {len(found.events)} events")
    _rows("events", [{"event": one.id, "type": one.type, "number": one.seq} for one in found.events])
    rows = [
        {"adapter": (one.adapter or "")[:12], **_where(one.version, one.attempt), "events": one.events}
        for one in found.adapters
    ]
    _rows("adapters trained on them", rows)
    _held(found.held_by)
    next_steps(*(command("illm", "feedback", "trace", "event", one.id) for one in found.events[:1]))


def _increment(found: IncrementTrace) -> None:
    write(f"version {found.version}: adapter {(found.adapter or '')[:12]}, {len(found.sightings)} events")
    _rows("outcomes", [{"outcome": what, "events": count} for what, count in found.outcomes.items()])
    _rows("events", [{"event": one.event, "number": one.seq, "outcome": one.outcome} for one in found.sightings])
    _held(found.held_by)
    next_steps(*(command("illm", "feedback", "trace", "event", one.event) for one in found.sightings[:1]))


def _example(found: ExampleTrace) -> None:
    write(f"example {found.id}")
    for version, example in found.made_by.items():
        write(f"  version {version}: {example['kind']}, weight {example['weight']:g}")
        write(f"    from {', '.join(example['sources'])}; users {', '.join(example['users'])}")
    last = next(reversed(found.made_by.values()))
    for message in last["prompt"]:
        write(f"  {message['role']}: {_short(message['content'])}")
    for key in ("completion", "chosen", "rejected", "desirable"):
        if key in last:
            write(f"  {key}: {_short(last[key])}")
    next_steps(command("illm", "feedback", "trace", "event", last["sources"][-1]))


def _sighting(one: Any) -> dict[str, Any]:
    return {**_where(one.version, one.attempt), "adapter": (one.adapter or "")[:12], "outcome": one.outcome}


def _where(version: int | None, attempt: str | None) -> dict[str, Any]:
    return {"version": version if version is not None else "-", "attempt": (attempt or "-")[:12]}


def _held(versions: tuple[int, ...]) -> None:
    write(f"held by versions: {', '.join(map(str, versions)) or 'none'}")


def _rows(title: str, rows: list[dict[str, Any]]) -> None:
    table(title, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        write(f"and {len(rows) - _SHOWN} more (all of them with --json)")


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else text[:97] + "..."
