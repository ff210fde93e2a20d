"""How long `illm feedback trace` takes with a million events in 365 versions.

    python benchmarks/tracing.py [EVENTS]

The databases are filled by plain inserts, as an import and a year of nights would leave them: a third interactions, a
third thumbs, a third corrections, of a user a hundred events; every version read its share and made an example of every
tenth correction.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.chat import json_digest
from incremental_llm.dataset.examples import SftExample
from incremental_llm.feedback import FeedbackStore, tables
from incremental_llm.registry import Registry, schema
from incremental_llm.trace import trace_event, trace_example, trace_increment, trace_person

VERSIONS = 365
PER_USER = 100
CHUNK = 30_000


def event(n: int) -> dict[str, Any]:
    """Event n: an interaction, a thumb on it, a correction of it, in turn."""
    about, user = f"i{n - n % 3}", f"u{n // PER_USER}"
    told = {"id": f"{'itk'[n % 3]}{n}", "time": "2026-11-01T12:00:00Z"}
    if n % 3 == 0:
        asked = [{"role": "user", "content": f"Question {n}?"}]
        served = {"type": "interaction", "conversation": "c", "user": user, "messages": asked, "model": "m"}
        return told | served | {"reply": "Yes.", "metadata": {}}
    if n % 3 == 1:
        return told | {"type": "thumb", "interaction": about, "user": user, "value": 1}
    return told | {"type": "correction", "interaction": about, "reviewer": f"r{n % 50}", "content": f"No, {n}."}


def fill_store(store: FeedbackStore, count: int) -> None:
    for start in range(0, count, CHUNK):
        bodies = [event(n) for n in range(start, min(start + CHUNK, count))]
        with store.writing() as connection:
            rows = [
                (body["id"], n, n, body["type"], "d" * 64, json.dumps(body)) for n, body in enumerate(bodies, start + 1)
            ]
            tables.insert(connection, tables.events, rows)
            links = [(*link, body["id"]) for body in bodies for link in tables.links_of(body)]
            tables.insert(connection, tables.links, links)
    with store.writing() as connection:
        connection.execute(sa.update(tables.counters).where(tables.counters.c.name == "seq").values(value=count))


def night(registry: Registry, work: Path, version: int, share: range) -> None:
    """One more version, which read its share of the events."""
    adapter = work / f"adapter{version}"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text(str(version))
    head = registry.head()
    stack = head.stack.plus(registry.put_object(adapter), len(head.stack.adapters))
    decision = registry.put_json({"passed": True, "stack_digest": stack.digest})
    data = work / f"data{version}"
    data.mkdir()
    with (data / "sft.jsonl").open("w", encoding="utf-8") as lines:
        for n in (n for n in share if n % 30 == 2):
            told = {"prompt": [{"role": "user", "content": f"Question {n - 2}?"}], "completion": f"No, {n}."}
            made = SftExample(**told, sources=(f"i{n - 2}", f"k{n}"), users=(f"r{n % 50}",))
            lines.write(made.model_dump_json() + "\n")
    registry.commit_increment(
        parent=head.version,
        stack=stack,
        replaces=len(head.stack.adapters),
        cursor=share.stop,
        decision=decision,
        recipe=registry.put_json({"process": "increment"}),
        dataset=registry.put_object(data),
    )


def fill_uses(registry: Registry, size: int) -> None:
    """What each version recorded of its events, over one connection with room for the indices."""
    with schema.writing(registry._engine) as connection, connection.begin():
        connection.exec_driver_sql("PRAGMA cache_size=-1000000").close()
        for snapshot in registry.list()[1:]:
            share = range((snapshot.version - 1) * size, snapshot.version * size)
            uses = ((n + 1, event(n)) for n in share)
            rows = [
                (snapshot.version, snapshot.stack.adapters[-1], body["id"], seq, body.get("user") or body["reviewer"])
                for seq, body in uses
            ]
            columns = "version, adapter, event, seq, user, outcome"
            connection.exec_driver_sql(f"INSERT INTO event_uses ({columns}) VALUES (?, ?, ?, ?, ?, 'used')", rows)


def timed(registry: Registry, store: FeedbackStore, count: int) -> Iterator[tuple[str, float]]:
    """Seconds of each trace, the slowest of three of different names."""
    found = json_digest({"kind": "sft", "prompt": [{"role": "user", "content": "Question 0?"}], "completion": "No, 2."})
    asked: dict[str, Callable[[int], object]] = {
        "event": lambda n: trace_event(registry, store, f"i{n - n % 3}"),
        "user": lambda n: trace_person(registry, store, f"u{n // PER_USER}"),
        "reviewer of 2 %": lambda n: trace_person(registry, store, f"r{n % 50}"),
        "increment": lambda n: trace_increment(registry, 1 + n % VERSIONS),
        "example": lambda n: trace_example(registry, found[: 12 + n % 3]),
    }
    for name, ask in asked.items():
        seconds = []
        for n in (7, count // 2, count - 5):
            began = time.monotonic()
            ask(n)
            seconds.append(time.monotonic() - began)
        yield name, max(seconds)


def measured(count: int) -> dict[str, float]:
    """Seconds by what is traced, of so many events."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = Stack(base=BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32))
        with FeedbackStore(f"sqlite:///{work / 'f.db'}") as store, Registry.create(work / "registry", base) as registry:
            fill_store(store, count)
            size = count // VERSIONS
            for version in range(1, VERSIONS + 1):
                night(registry, work, version, range((version - 1) * size, version * size))
            fill_uses(registry, size)
            return dict(timed(registry, store, count))


if __name__ == "__main__":
    for traced, seconds in measured(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000).items():
        print(f"{traced}: {seconds}")
