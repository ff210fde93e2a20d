"""Each promise is broken by hand, behind the registry's back, and verify names it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest

from incremental_llm.adapters.stack import BaseRef
from incremental_llm.errors import IntegrityError, PreconditionFailed
from incremental_llm.registry import Erasure, EventUse, Snapshot, schema
from incremental_llm.registry.objects import Tombstone


@pytest.fixture
def lived(world):
    """Three versions, a rollback and a rejected attempt."""
    world.night(replay=world.registry.put_json(["replay"]))
    world.night()
    world.registry.rollback(1, "x")
    world.rejected(range(21, 24))
    assert world.registry.verify() == []
    return world


def break_by(world, statement: str) -> str:
    world.change(statement)
    return "\n".join(map(str, world.registry.verify()))


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("update refs set version = 9", "ref production: points to version 9, which is not there"),
        ("update refs set version = 0", "ref production: is 0, but its last recorded move is to 3"),
        ("delete from refs", "ref production: expected it to exist"),
        ("delete from snapshots where version = 2", "version 3: expected version 2 after 1: versions are missing"),
        ("delete from snapshots where version = 0", "version 0: expected the base as first version"),
        (
            "update snapshots set body = replace(body, '\"cursor\":10', '\"cursor\":99') where version = 1",
            "version 1: cannot",
        ),
        ("update snapshots set attempt = 'x' where version = 2", "version 2: its row holds another one"),
        ("update snapshots set version = 7 where version = 3", "version 7: its row holds another one, version 3"),
    ],
)
def test_rows_that_break_a_promise_are_named(lived, statement, found):
    assert found in break_by(lived, statement)


def test_a_rewritten_version_with_a_fitting_hash_breaks_the_chain(lived):
    forged = lived.registry.get(1).model_copy(update={"note": "forged"})
    forged = forged.sealed(**{name: getattr(forged, name) for name in type(forged).model_fields if name != "hash"})
    lived.change(
        "update snapshots set body = :body, hash = :hash where version = 1", body=forged.body, hash=forged.hash
    )
    assert [str(p) for p in lived.registry.verify()] == [
        "version 1: is listed as something else than it is",
        "version 2: not chained to version 1: its hash differs",
    ]


def test_damaged_and_missing_objects_are_named_with_their_version(lived):
    head = lived.registry.head()
    (lived.registry.object_path(head.stack.adapters[0]) / "adapter_model.safetensors").write_text("damaged")
    lived.registry.object_path(head.replay).unlink()
    problems = {p.subject: p.text for p in lived.registry.verify()}
    assert "adapter_model.safetensors" in problems[f"object {head.stack.adapters[0][:12]}"]
    assert "needed by version 1" in problems[f"object {head.replay[:12]}"]
    with pytest.raises(IntegrityError, match="adapter_model"):
        lived.registry.object_path(head.stack.adapters[0], verified=True)


def test_a_promotion_whose_decision_is_gone_is_named(lived):
    lived.registry.object_path(lived.registry.get(2).decision).unlink()
    assert any("version 2: was promoted: expected a passing decision" in str(p) for p in lived.registry.verify())


def test_a_rejected_attempt_keeps_its_objects(lived):
    lived.registry.object_path(lived.registry.attempts()[0].decision).unlink()
    assert "needed by attempt" in str(lived.registry.verify()[0])


@pytest.mark.sqlite
def test_a_damaged_database_is_a_problem_not_a_crash(lived):
    lived.registry.close()
    path = lived.root / "registry" / "registry.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    data = bytearray(path.read_bytes())
    data[4096 * 2 + 100 : 4096 * 3] = b"\xff" * 3996
    path.write_bytes(data)
    try:
        assert lived.registry.verify()[0].subject == "database"
    except IntegrityError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "update attempts set body = replace(body, 'status', 'statuq')",
        "update ref_moves set time = 'x'",
    ],
)
@pytest.mark.sqlite
def test_a_damaged_row_is_damage_and_no_error_of_a_library(lived, statement):
    with closing(sqlite3.connect(lived.root / "registry" / "registry.db")) as connection, connection:
        connection.execute(statement)
    for read in (lived.registry.attempts, lived.registry.history, lived.registry.verify):
        try:
            read()
        except IntegrityError as error:
            assert "found a damaged file" in str(error)
            return
    raise AssertionError("nobody was told")


def safetensors(*values: int) -> bytes:
    """A file of one tensor `up` of four bytes and one `down` of two."""
    header = {
        "up": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "down": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(values or range(6))


@pytest.fixture
def adapter(world):
    """The file of an adapter's weights, in production."""
    folder = world.folder("x")
    (folder / "adapter_model.safetensors").write_bytes(safetensors())
    stack = world.registry.head().stack.plus(world.registry.put_object(folder))
    world.registry.commit_increment(parent=0, stack=stack, cursor=1, decision=world.decision(stack))
    assert world.registry.verify() == []
    return world.registry.object_path(stack.adapters[0]) / "adapter_model.safetensors"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("place", "named"), [(-6, "up"), (-3, "up"), (-2, "down"), (-1, "down"), (2, "its header"), (9, "its header")]
)
def test_the_tensor_that_is_damaged_is_named(world, adapter, place, named):
    data = bytearray(adapter.read_bytes())
    data[place] ^= 1
    adapter.write_bytes(data)
    (problem,) = world.registry.verify()
    assert f"adapter_model.safetensors ({named}) differ" in problem.text


@pytest.mark.sqlite
def test_a_file_that_was_cut_off_is_named(world, adapter):
    adapter.write_bytes(adapter.read_bytes()[:-1])
    assert "adapter_model.safetensors (its header)" in world.registry.verify()[0].text


@pytest.mark.sqlite
def test_a_manifest_that_lies_about_a_tensor_is_named(world, adapter):
    manifest = adapter.parent / "manifest.json"
    said = json.loads(manifest.read_text())
    said["tensors"]["adapter_model.safetensors"]["down"] = "0" * 64
    manifest.write_text(json.dumps(said))
    assert "adapter_model.safetensors (down)" in world.registry.verify()[0].text


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("update tags set version = 9", "ref first: points to version 9, which is not there"),
        ("update tags set name = 'production'", "tag production: a ref has the same name"),
        ("delete from ref_moves where after = 2", "version 2: no ref was moved to it: its commit is not whole"),
        ("update ref_moves set after = 8 where after = 2", "version 8: a ref was moved to it, and it is not there"),
        ("update event_uses set adapter = 'other' where version = 2", "version 2: events are recorded as read by"),
        ("update event_uses set version = 9 where version = 2", "version 9: events are recorded as read by"),
        ("update summaries set cursor = 9 where version = 2", "version 2: is listed as something else than it is"),
        ("insert into examples values (9, 'e', 'sft', 0)", "version 9: examples are recorded for it"),
        (
            "delete from quarantine where seq = 12",
            "version 3: gave back 1 events, from 12 on, that are not quarantined",
        ),
    ],
)
def test_a_commit_that_is_not_whole_is_named(world, statement, found):
    uses = [EventUse(event="e1", seq=12, users=("u1",), outcome="used")]
    world.night()
    world.night(uses=uses)
    world.registry.rollback(1, "x")
    world.registry.tag("first", 0)
    assert world.registry.verify() == []
    assert found in break_by(world, statement)


@pytest.mark.parametrize("part", ["stack", "replay", "corrections", "cursor"])
def test_a_rollback_that_restores_only_a_part_is_named(lived, part):
    """Resealed, so that its own hash is right: only what it restores says that it is not."""
    other = {"stack": lived.base, "replay": None, "corrections": lived.registry.put_json([]), "cursor": 3}[part]
    true = lived.registry.get(3)
    fields = {name: getattr(true, name) for name in type(true).model_fields if name != "hash"}
    forged = Snapshot.sealed(**{**fields, part: other})
    lived.change(
        "update snapshots set body = :body, hash = :hash where version = 3", body=forged.body, hash=forged.hash
    )
    assert any(f"version 3: restores version 1 but for its {part}" in str(one) for one in lived.registry.verify())


@pytest.mark.parametrize(
    "changed",
    [
        {"base": BaseRef(name="tiny", digest="cc" * 32, template_digest="7e" * 32)},
        {"base": BaseRef(name="tiny", digest="ba" * 32, template_digest="cc" * 32)},
        {"dtype": "float32"},
        {"quantization": "nf4"},
        {"adapters": ("c" * 64,)},
    ],
    ids=["base", "template", "dtype", "quantization", "adapters"],
)
def test_a_promotion_by_a_decision_for_something_else_is_refused_and_named(world, changed):
    stack = world.candidate(world.registry.head())
    other = world.decision(stack.model_copy(update=changed))
    with pytest.raises(PreconditionFailed, match="for stack"):
        world.registry.commit_increment(parent=0, stack=stack, cursor=1, decision=other)
    true = world.registry.commit_increment(parent=0, stack=stack, cursor=1, decision=world.decision(stack))
    fields = {name: getattr(true, name) for name in type(true).model_fields if name != "hash"}
    forged = Snapshot.sealed(**{**fields, "decision": other})
    world.change(
        "update snapshots set body = :body, hash = :hash where version = 1", body=forged.body, hash=forged.hash
    )
    assert any("version 1: was promoted" in str(one) and "for stack" in one.text for one in world.registry.verify())


def test_an_object_that_was_erased_without_a_record_or_not_at_all_is_named(lived):
    head = lived.registry.head()
    lived.registry._objects.entomb(head.replay, Tombstone("e1", lived.registry.put_json(["other"])))
    assert "no record of its erasure" in "\n".join(map(str, lived.registry.verify()))
    gone = lived.registry.put_json({"still": "here"})
    lived.change("insert into erased_objects values (:digest, NULL, 'e2')", digest=gone)
    assert "erased by e2, and still lies in" in "\n".join(map(str, lived.registry.verify()))


def test_an_erasure_that_leaves_a_version_unmarked_is_named(lived):
    head, now = lived.registry.head(), datetime.now(UTC)
    record = {"id": "e1", "person": "p", "begun": now, "finished": now, "status": "erased"}
    adapters = head.stack.adapters
    lived.registry.erasing().record(Erasure(**record, adapters=adapters, versions=(1, 2, 3)))
    assert lived.registry.verify() == []
    lived.registry.erasing().record(Erasure(**record, adapters=adapters, versions=(1, 3)))
    assert [str(one) for one in lived.registry.verify()] == ["erasure e1: version 2 holds what it erased, unmarked"]


@pytest.mark.sqlite
def test_settings_that_lose_an_acknowledged_commit_are_named(world, monkeypatch):
    monkeypatch.setattr(
        schema, "_configure_sqlite", lambda connection, record: connection.execute("PRAGMA synchronous=OFF")
    )
    with world.open() as registry:
        (problem,) = registry.verify()
    assert str(problem) == "durability: expected journal_mode=wal and synchronous=2, found wal, 0"


def test_recovery_twice_is_recovery_once(lived):
    """Opening is the recovery: SQLite replays its log, a server its own; the second time nothing is left to do."""
    lived.registry.close()
    seen = []
    for _ in range(2):
        with lived.open() as registry:
            seen.append(
                (registry.list(), registry.refs(), registry.quarantine(), registry.attempts(), registry.verify())
            )
    assert seen[0] == seen[1]
