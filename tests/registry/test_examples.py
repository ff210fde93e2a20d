"""Examples are found by id and by event, in registries that are new and in those that were made before."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event as sa_event
from sqlalchemy import text

from incremental_llm.chat import Message
from incremental_llm.dataset import CompiledDataset, CompileSettings, Example, PairExample, SftExample
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.registry import EventUse, Registry, schema

ASKED = (Message(role="user", content="Wie lange, schön?"),)
SFT = SftExample(prompt=ASKED, completion="45 days", sources=("i1", "k1"), users=("r1",))
PAIR = PairExample(prompt=ASKED, chosen="45 days", rejected="ü", sources=("i1", "k1"), users=("r1",))
OTHER = SftExample(prompt=ASKED, completion="no idea", sources=("i2", "k2"), users=("r2",))


def dataset(world, *examples: Example) -> str:
    sft = tuple(e for e in examples if isinstance(e, SftExample))
    pairs = tuple(e for e in examples if isinstance(e, PairExample))
    made = CompiledDataset(
        sft=sft,
        pairs=pairs,
        unpaired=(),
        drops=(),
        corrections=(),
        account={},
        outcomes={},
        first_seq=1,
        last_seq=2,
        superseded=frozenset(),
        settings=CompileSettings(),
    )
    folder: Path = world.folder("data")
    made.write(folder)
    return str(world.registry.put_object(folder))


def found(registry: Registry, example: Example) -> dict[int, dict[str, object]]:
    places = registry.find_examples(example.id[:10])
    return {place.version: registry.read_example(place) for place in places}


def test_by_id_and_by_event(world):
    world.night(dataset=dataset(world, SFT, PAIR))
    world.night(dataset=dataset(world, OTHER, SFT))
    for example, versions in ((SFT, [1, 2]), (PAIR, [1]), (OTHER, [2])):
        rows = found(world.registry, example)
        assert list(rows) == versions
        assert all(row == example.model_dump(mode="json") for row in rows.values())
    assert {(one.version, one.kind) for one in world.registry.examples_from("k1")} == {
        (1, "sft"),
        (1, "pair"),
        (2, "sft"),
    }
    assert world.registry.examples_from("k") == () and world.registry.find_examples("0" * 64) == ()
    assert len({one.example for one in world.registry.find_examples("")}) == 2  # of three: enough to say "several"


def test_a_registry_of_format_1_is_brought_to_this_one(world):
    world.night(dataset=dataset(world, SFT, PAIR))
    with schema.writing(world.registry._engine) as connection, connection.begin():
        for table in (
            schema.examples,
            schema.example_sources,
            schema.erasures,
            schema.erased_objects,
            schema.tags,
            schema.summaries,
        ):
            table.drop(connection)
        connection.execute(text("UPDATE registry SET value = '1' WHERE key = 'format'"))
    for _ in range(2):  # the second time nothing is done
        with world.open() as registry:
            assert found(registry, SFT) == {1: SFT.model_dump(mode="json")}
            assert [one.version for one in registry.examples_from("i1")] == [1, 1]
            assert registry.erasures() == () and registry.verify() == []
    world.night(dataset=dataset(world, OTHER))
    assert list(found(world.registry, OTHER)) == [2]


@pytest.mark.sqlite
def test_no_trace_reads_a_whole_table(world, tmp_path):
    """By the plans of the database: `SCAN` is what a million events would make slow."""
    from incremental_llm.trace import trace_event, trace_example, trace_increment, trace_person

    uses = [EventUse(event="k1", seq=1, users=("u1",), outcome="used")]
    world.night(dataset=dataset(world, SFT), recipe=world.registry.put_json({"process": "increment"}), uses=uses)
    store = FeedbackStore(f"sqlite:///{tmp_path / 'f.db'}")
    told = {"type": "interaction", "time": "2026-11-01T12:00:00Z", "conversation": "c", "user": "u1", "model": "m"}
    told |= {"id": "i1", "messages": [{"role": "user", "content": "Hi"}], "reply": "no"}
    fixed = {"type": "correction", "id": "k1", "time": told["time"], "interaction": "i1", "reviewer": "r1"}
    late = fixed | {"id": "k2", "interaction": "gone", "content": "x"}
    store.append([parse_event(one) for one in (told, fixed | {"content": "yes"}, late)])
    asked: list[tuple[str, object]] = []
    plans: list[str] = []
    for engine in (store._engine, world.registry._engine):
        sa_event.listen(engine, "before_cursor_execute", lambda c, cur, sql, p, x, m: asked.append((sql, p)))
    for name in ("k1", "k2", "i1"):
        trace_event(world.registry, store, name)
    trace_person(world.registry, store, "u1")
    trace_increment(world.registry, 1)
    trace_example(world.registry, SFT.id[:12])
    for engine, prefix in ((store._engine, "feedback_"), (world.registry._engine, "")):
        with engine.connect() as connection:
            for sql, given in [one for one in asked if one[0].lstrip().startswith("SELECT")]:
                if ("feedback_" in sql) == bool(prefix):
                    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given)
                    plans += [row[3] for row in rows]
    small = ("snapshots", "refs", "registry")  # a row a version
    scans = [plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] not in small]
    assert len(plans) > 10 and scans == []
    store.close()


@pytest.mark.parametrize("name", ["", "xyz" * 5, "ABCDEF0123", "12345"])
def test_what_is_no_beginning_of_an_id_is_refused(world, name):
    from incremental_llm.errors import InputError
    from incremental_llm.trace import trace_example

    with pytest.raises(InputError, match="expected at least 8 digits"):
        trace_example(world.registry, name)
