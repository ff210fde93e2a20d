"""The examples of every version, found by id and by event; the texts stay in the datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Table, delete, insert, select

from incremental_llm.dataset.examples import Kind, parse_example
from incremental_llm.registry import schema
from incremental_llm.registry.objects import ObjectStore
from incremental_llm.registry.updates import ExamplePlace

_CHUNK = 500
_FILES: dict[Kind, str] = {"sft": "sft.jsonl", "pair": "pairs.jsonl", "unpaired": "unpaired.jsonl"}
_AFTER_HEX = "g"


class ExampleSighting(BaseModel):
    """An example in the dataset of a version."""

    model_config = ConfigDict(frozen=True)

    example: str
    version: int
    kind: Kind
    offset: int


def places_in(dataset: Path) -> Iterator[ExamplePlace]:
    """Every example of a compiled dataset's folder; none where it holds no files of examples.

    The same example twice in one dataset has the place of the first.
    """
    seen: set[str] = set()
    for kind, name in _FILES.items():
        if not (dataset / name).is_file():
            continue
        offset = 0
        with (dataset / name).open("rb") as lines:
            for line in lines:
                example = parse_example(json.loads(line.decode("utf-8", "surrogatepass")))
                if example.id not in seen:
                    seen.add(example.id)
                    sources = tuple(dict.fromkeys(example.sources))
                    yield ExamplePlace(example=example.id, kind=kind, offset=offset, sources=sources)
                offset += len(line)


def read_example(dataset: Path, kind: Kind, offset: int) -> dict[str, Any]:
    """The example whose line begins at `offset`."""
    with (dataset / _FILES[kind]).open("rb") as stream:
        stream.seek(offset)
        found: dict[str, Any] = json.loads(stream.readline().decode("utf-8", "surrogatepass"))
    return found


def write_examples(connection: Connection, version: int, places: Sequence[ExamplePlace]) -> None:
    """Make these the examples of a version."""
    for table in (schema.examples, schema.example_sources):
        connection.execute(delete(table).where(table.c.version == version))
    rows = [{"version": version, **place.model_dump(exclude={"sources"})} for place in places]
    insert_many(connection, schema.examples, rows)
    shared = [(place.example, event) for place in places for event in place.sources]
    sources = [{"version": version, "example": example, "event": event} for example, event in shared]
    insert_many(connection, schema.example_sources, sources)


def sightings_of_example(connection: Connection, prefix: str) -> tuple[ExampleSighting, ...]:
    """Every version's example whose id begins so, by id and version; two different ids at most, of many."""
    table = schema.examples
    begins = (table.c.example >= prefix, table.c.example < prefix + _AFTER_HEX)
    found = select(table.c.example).where(*begins).distinct().order_by(table.c.example).limit(2)
    query = select(table).where(table.c.example.in_(found)).order_by(table.c.example, table.c.version)
    return tuple(ExampleSighting(**row._asdict()) for row in connection.execute(query))


def examples_from(connection: Connection, event: str) -> tuple[ExampleSighting, ...]:
    """Every version's examples that stand on this event, by version."""
    sources, table = schema.example_sources, schema.examples
    same = (table.c.version == sources.c.version) & (table.c.example == sources.c.example)
    query = select(table).join(sources, same).where(sources.c.event == event)
    rows = connection.execute(query.order_by(table.c.version, table.c.kind, table.c.offset))
    return tuple(ExampleSighting(**row._asdict()) for row in rows)


def upgrade(connection: Connection, objects: ObjectStore) -> None:
    """Bring a registry of format 1 to this one: the examples of its versions are found in their datasets."""
    from incremental_llm.registry.queries import all_snapshots

    schema.add_tables(connection)
    for snapshot in all_snapshots(connection):
        if snapshot.kind == "increment" and snapshot.dataset is not None and snapshot.dataset in objects:
            write_examples(connection, snapshot.version, tuple(places_in(objects.path(snapshot.dataset))))


def insert_many(connection: Connection, table: Table, rows: list[dict[str, object]]) -> None:
    """Insert rows, some hundreds a statement."""
    for start in range(0, len(rows), _CHUNK):
        connection.execute(insert(table), rows[start : start + _CHUNK])
