"""Import of JSONL: bad lines are named, the rest goes in, and the same call again continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, ImportReport, import_jsonl
from incremental_llm.feedback.importers import jsonl
from incremental_llm.feedback.importers.lines import Block, in_order

TIME = "2026-11-01T12:00:00Z"


def served(name: str, reply: str = "yes") -> str:
    body = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": "?"}], "reply": reply}
    return json.dumps({"type": "interaction", "id": name, "time": TIME, "model": "m", **body}, ensure_ascii=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes(("\n".join(lines) + end).encode())
    return path


def short(report: ImportReport) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "added": report.added,
        "duplicates": report.duplicates,
        "refused": [refused.row for refused in report.refused],
        "resumed": report.resumed,
    }


def test_a_bad_line_is_named_and_the_rest_goes_in(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.jsonl",
        served("i1"),
        '{"type": "thumb", "id"',
        "",
        '{"type":"page_view"}',
        served("i1"),
        served("i1", "other"),
        json.dumps({"type": "thumb", "id": "t1", "time": TIME, "interaction": "later", "user": "u", "value": 1}),
        '{"type":"ping","n":NaN}',
        '{"type":"ping","value":-1,"value":1}',
        "[" * 100_000,
        served("i2"),
    )
    report = import_jsonl(store, path)
    assert (report.rows, report.added, report.duplicates, report.blank, report.waiting) == (11, 4, 1, 1, 1)
    assert report.unknown_types == {"page_view": 1}
    reasons = {refused.row: refused.reason for refused in report.refused}
    assert reasons.keys() == {2, 6, 8, 9, 10}
    assert "expected JSON, found an error at position" in reasons[2]
    assert "id 'i1' is stored with other content" in reasons[6]
    assert "NaN" in reasons[8]
    assert "the key 'value' twice" in reasons[9]
    assert "nested too deeply" in reasons[10] or "expected JSON" in reasons[10]


def test_bytes_that_are_no_utf8_are_one_bad_line(store: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(served("i1").encode() + b"\n\xff\xfe\n" + served("i2").encode() + b"\n")
    report = import_jsonl(store, path)
    assert short(report) == {"rows": 3, "added": 2, "duplicates": 0, "refused": [2], "resumed": 0}
    assert report.refused[0].reason == "expected UTF-8, found byte 0xff at position 1"


def test_separators_inside_texts_and_other_line_ends_are_harmless(store: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (served("i1", "a\u2028b\u0085c") + "\r\n" + served("i2") + "\r\n").encode())
    report = import_jsonl(store, path)
    assert short(report) == {"rows": 2, "added": 2, "duplicates": 0, "refused": [], "resumed": 0}
    assert next(store.read()).event.reply == "a\u2028b\u0085c"  # type: ignore[union-attr]


def test_the_same_file_again_reads_nothing_and_still_names_its_bad_lines(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), "{", served("i2"))
    import_jsonl(store, path)
    again = import_jsonl(store, path)
    assert short(again) == {"rows": 0, "added": 0, "duplicates": 0, "refused": [2], "resumed": 3}


def test_a_file_without_an_event_is_one_in_every_import(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", "", "{", " ", "{")
    assert [import_jsonl(store, path).all_refused for _ in range(2)] == [True, True]
    write(path, "", "{", " ", "{", served("i1"))
    assert [import_jsonl(store, path).all_refused for _ in range(2)] == [False, False]


def test_a_file_that_grew_is_read_from_where_it_ended(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"))
    import_jsonl(store, path)
    write(path, served("i1"), served("i2"), "{")
    assert short(import_jsonl(store, path)) == {"rows": 2, "added": 1, "duplicates": 0, "refused": [3], "resumed": 1}


def test_a_file_that_changed_is_read_from_the_top(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), "{", served("i2"))
    import_jsonl(store, path)
    write(path, served("i1"), served("i3"))
    assert short(import_jsonl(store, path)) == {"rows": 2, "added": 1, "duplicates": 1, "refused": [], "resumed": 0}


def test_a_file_that_shrank_is_read_from_the_top(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), served("i2"))
    import_jsonl(store, path)
    write(path, served("i1"))
    assert short(import_jsonl(store, path)) == {"rows": 1, "added": 0, "duplicates": 1, "refused": [], "resumed": 0}


def test_a_last_line_without_its_end_is_read_and_read_again(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), served("i2")[:-9], end="")
    assert short(import_jsonl(store, path)) == {"rows": 2, "added": 1, "duplicates": 0, "refused": [2], "resumed": 0}
    write(path, served("i1"), served("i2"), end="")
    assert short(import_jsonl(store, path)) == {"rows": 1, "added": 1, "duplicates": 0, "refused": [], "resumed": 1}
    write(path, served("i1"), served("i2"))
    assert short(import_jsonl(store, path)) == {"rows": 1, "added": 0, "duplicates": 1, "refused": [], "resumed": 1}


def test_a_killed_import_continues(store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BATCH_LINES", 10)
    lines = ["{" if n == 3 else served(f"i{n}") for n in range(35)]
    path = write(tmp_path / "log.jsonl", *lines)

    def kill(done: int, size: int) -> None:
        if done > size / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_jsonl(store, path, progress=kill)
    assert store.head() == 19
    report = import_jsonl(store, path)
    assert short(report) == {"rows": 15, "added": 15, "duplicates": 0, "refused": [4], "resumed": 20}
    assert [stored.seq for stored in store.read()] == list(range(1, 35))


def test_a_kill_within_a_batch_stores_neither_events_nor_mark(
    store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"))

    def broken(*_args: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("incremental_llm.feedback.store._save_step", broken)
        import_jsonl(store, path)
    assert (store.head(), store.mark(str(path))) == (0, None)
    assert import_jsonl(store, path).added == 1


def test_progress_counts_bytes(store: FeedbackStore, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), served("i2"))
    calls: list[tuple[int, int]] = []
    import_jsonl(store, path, progress=lambda done, size: calls.append((done, size)))
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)


def test_a_missing_file(store: FeedbackStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: expected an event log"):
        import_jsonl(store, tmp_path / "none.jsonl")


@pytest.mark.parametrize("ended", [True, False])
def test_a_huge_line_is_refused_and_the_rest_goes_in(
    ended: bool, store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "log.jsonl", served("i1"), "x" * 3_000_000, served("i2"))
    if not ended:
        path.write_bytes(path.read_bytes() + b"y" * 2000)
    report = import_jsonl(store, path)
    assert report.added == 2
    assert (report.refused[0].row, report.refused[0].reason) == (
        2,
        "expected at most 1000 bytes in a line, found 3000001",
    )
    assert [refused.row for refused in report.refused] == ([2] if ended else [2, 4])
    again = import_jsonl(store, path)  # the mark covers the huge line: only what has no end is read again
    assert (again.rows, again.added, again.resumed) == (0 if ended else 1, 0, 3)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-12:00"])
def test_a_time_that_utc_cannot_hold_is_one_refused_line(time: str, store: FeedbackStore, tmp_path: Path) -> None:
    early = json.dumps(json.loads(served("i2")) | {"time": time})
    path = write(tmp_path / "log.jsonl", served("i1"), early, served("i3"), json.dumps({"type": "view", "time": time}))
    report = import_jsonl(store, path)
    assert report.added == 3  # an event of an unknown type is kept without its time
    (refused,) = report.refused
    assert refused.row == 2 and "between the years 1 and 9999" in refused.reason


def test_two_imports_of_one_file_at_once_agree(
    store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "log.jsonl", served("i1"), "no JSON", served("i2"))
    monkeypatch.setattr(jsonl, "BATCH_LINES", 1)
    reports = []

    def meanwhile(_done: int, _size: int) -> None:
        if not reports:
            reports.append(None)
            reports[0] = import_jsonl(store, path)

    assert import_jsonl(store, path, progress=meanwhile).refused == reports[0].refused
    assert store.counts() == {"interaction": 2}


def test_a_large_file_is_read_by_other_processes_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["{" if n % 50 == 3 else "" if n % 70 == 5 else served(f"i{n % 380}") for n in range(400)]
    path = write(tmp_path / "log.jsonl", *lines, '{"type"', end="")
    monkeypatch.setattr(jsonl, "BATCH_LINES", 30)
    monkeypatch.setattr(jsonl, "PROCESSES_FROM_BYTES", 0)
    found = []
    for processes in (0, 2):
        with FeedbackStore(f"sqlite:///{tmp_path / f'f{processes}.db'}") as store:
            report = import_jsonl(store, path, processes=processes)
            found.append((report, list(store.read()), store.mark(str(path))))
    assert found[0] == found[1]
    assert found[0][0].added == 368 and found[0][2] is not None and found[0][2].lines == 400


def _die(_block: Block) -> int:
    os._exit(1)


def test_a_process_that_dies_ends_the_import_loudly(tmp_path: Path) -> None:
    blocks = [Block(1, (b"{}\n",), 3, None)]
    with pytest.raises(BrokenProcessPool):
        list(in_order(_die, blocks, 1))
