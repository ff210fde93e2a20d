from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from incremental_llm.artifacts import (
    MANIFEST,
    file_digest,
    folder_digest,
    is_complete,
    staged_folder,
    switch_to_wal,
    verify_folder,
    write_atomic,
    write_json,
)
from incremental_llm.errors import IntegrityError


@pytest.fixture
def done(tmp_path: Path) -> Path:
    with staged_folder(tmp_path / "done") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text("b")
        (folder / "a.txt").write_text("a")
    return tmp_path / "done"


def test_a_staged_folder_appears_whole_and_verifies(done: Path):
    assert is_complete(done)
    assert verify_folder(done) == folder_digest(done)
    assert [path.name for path in done.parent.iterdir()] == ["done"]


def test_an_error_while_filling_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "done") as folder:
        (folder / "a.txt").write_text("a")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_complete_target_wins(done: Path):
    with staged_folder(done) as folder:
        (folder / "other.txt").write_text("other")
    assert not (done / "other.txt").exists()
    assert [path.name for path in done.parent.iterdir()] == ["done"]


def test_an_empty_target_is_filled_and_a_foreign_one_is_left_alone(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as folder:
        (folder / "a.txt").write_text("a")
    verify_folder(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not to be lost")
    with pytest.raises(IntegrityError, match="not ours to delete"), staged_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "not to be lost"


def test_many_writers_of_one_target_leave_one_whole(tmp_path: Path):
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with staged_folder(tmp_path / "done") as folder:
                (folder / "a.txt").write_text("a")
                start.wait()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    verify_folder(tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "a.txt").write_text("x"), "a.txt"),
        (lambda folder: (folder / "deep" / "b.txt").unlink(), "deep/b.txt"),
        (lambda folder: (folder / "extra.txt").write_text(""), "extra.txt"),
        (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
        (lambda folder: (folder / MANIFEST).write_text("[]"), MANIFEST),
        (lambda folder: (folder / MANIFEST).write_text('{"files": []}'), MANIFEST),
        (lambda folder: (folder / MANIFEST).write_text('{"files": 3, "digest": ""}'), MANIFEST),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff"), MANIFEST),
    ],
)
def test_every_damage_is_named(done: Path, damage, named):
    damage(done)
    with pytest.raises(IntegrityError, match=named):
        verify_folder(done)


def test_a_manifest_whose_digest_is_not_of_its_files_is_refused(done: Path):
    manifest = json.loads((done / MANIFEST).read_text())
    (done / MANIFEST).write_text(json.dumps({**manifest, "digest": "0" * 64}))
    with pytest.raises(IntegrityError, match="not that of the files"):
        verify_folder(done)


def test_write_atomic_replaces_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "x.txt"
    write_atomic(path, "old")
    assert file_digest(path) == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_write_json_keeps_half_a_surrogate_pair_and_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "x.json", {"text": "ü \ud83d"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"text": "ü \ud83d"}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", float("nan"))


def test_a_switch_to_wal_waits_for_others_and_for_nothing_else(tmp_path):
    """A full disk is no other process: to try again for half a minute would only hide it."""
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("create table t (x)")
        other.execute("begin exclusive")
        with closing(sqlite3.connect(tmp_path / "a.db", timeout=0)) as busy:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                switch_to_wal(busy.cursor(), 0.05)
            other.execute("commit")
            switch_to_wal(busy.cursor(), 0.05)
    tries = []

    class Full:
        def execute(self, statement: str) -> None:
            tries.append(statement)
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        switch_to_wal(Full(), 30.0)
    assert len(tries) == 1
