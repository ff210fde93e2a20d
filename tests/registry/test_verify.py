"""Each promise is broken by hand, behind the registry's back, and verify names it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from incremental_llm.errors import IntegrityError


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
    with closing(sqlite3.connect(world.root / "registry" / "registry.db")) as connection, connection:
        connection.execute(statement)
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
    with closing(sqlite3.connect(lived.root / "registry" / "registry.db")) as connection, connection:
        connection.execute("update snapshots set body = ?, hash = ? where version = 1", (forged.body, forged.hash))
    assert [str(p) for p in lived.registry.verify()] == ["version 2: not chained to version 1: its hash differs"]


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
