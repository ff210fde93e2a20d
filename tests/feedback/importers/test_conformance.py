"""What every importer promises: rows accounted for, nothing twice, bytes as they were, and no way to break it."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore, Interaction
from incremental_llm.feedback.importers import ImportReport, format_of, import_file, sources
from incremental_llm.feedback.importers.records import open_records

from .shapes import QUESTION, REPLY, SHAPES, Shape


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def written(tmp_path: Path, shape: Shape, records: list[dict[str, Any]], name: str = "export") -> Path:
    path = tmp_path / f"{name}.{shape.suffix}"
    shape.write(path, records)
    return path


def taken_in(store: FeedbackStore, path: Path, shape: Shape) -> ImportReport:
    return import_file(store, path, mapping=shape.mapping)


def accounted(report: ImportReport) -> bool:
    return report.rows == report.taken + report.blank + len({one.row for one in report.refused})


def test_a_record_becomes_what_it_says_to_the_byte(store: FeedbackStore, tmp_path: Path, shape: Shape) -> None:
    path = written(tmp_path, shape, [shape.record(1)])
    assert format_of(path) == shape.format
    report = taken_in(store, path, shape)
    assert not report.refused and (report.rows, report.taken, report.waiting) == (1, 1, 0)
    events = [stored.event for stored in store.read()]
    assert sorted(event.type for event in events) == sorted(shape.kinds)
    replies = {event.reply: event for event in events if isinstance(event, Interaction)}
    assert replies[REPLY].messages[-1].content == QUESTION
    assert replies[REPLY].messages[-1].role == "user"


def test_every_row_is_taken_or_refused_by_its_number_and_reason(
    store: FeedbackStore, tmp_path: Path, shape: Shape
) -> None:
    records, expected = [], {}
    for change, reason in shape.bad:
        records.append(shape.record(len(records)))
        broken = copy.deepcopy(shape.record(len(records)))
        change(broken)
        records.append(broken)
        expected[len(records)] = reason
    report = taken_in(store, written(tmp_path, shape, records), shape)
    assert report.rows == len(records) and accounted(report)
    assert report.taken == len(records) - len(shape.bad)
    found = {one.row: one.reason for one in report.refused}
    assert found.keys() == expected.keys()
    for row, reason in expected.items():
        assert reason in found[row], found[row]


def test_an_import_can_be_repeated_and_adds_nothing_twice(store: FeedbackStore, tmp_path: Path, shape: Shape) -> None:
    records = [shape.record(n) for n in range(6)]
    first = taken_in(store, written(tmp_path, shape, records), shape)
    again = taken_in(store, written(tmp_path, shape, records[::-1], "reversed"), shape)
    assert first.added == 6 * len(shape.kinds) and not first.duplicates
    assert not again.added and again.duplicates == first.added and accounted(again)
    assert not taken_in(store, written(tmp_path, shape, records), shape).added


def test_any_order_split_and_batch_gives_the_same_events(
    tmp_path: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, found = [shape.record(n) for n in range(7)], []
    for turn, cut in enumerate((0, 3, 7)):
        monkeypatch.setattr(sources, "BATCH_RECORDS", turn + 1)
        random.Random(turn).shuffle(records)
        with FeedbackStore(f"sqlite:///{tmp_path / f'{turn}.db'}") as store:
            for name, part in (("one", records[:cut]), ("two", records[cut:])):
                if part:
                    taken_in(store, written(tmp_path, shape, part, f"{turn}{name}"), shape)
            found.append({stored.event.id: stored.event for stored in store.read()})
    assert found[0] == found[1] == found[2] and len(found[0]) == 7 * len(shape.kinds)


def test_what_was_refused_is_kept_until_the_file_is_better(store: FeedbackStore, tmp_path: Path, shape: Shape) -> None:
    broken = copy.deepcopy(shape.record(1))
    shape.bad[0][0](broken)
    path = written(tmp_path, shape, [shape.record(0), broken])
    taken_in(store, path, shape)
    assert [row for _, row, _ in store.all_refused_lines()] == [2]
    written(tmp_path, shape, [shape.record(0), shape.record(1)])
    taken_in(store, path, shape)
    assert store.all_refused_lines() == ()


def test_a_failure_in_the_middle_leaves_whole_batches(
    store: FeedbackStore, tmp_path: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shape.format == "events":
        pytest.skip("its batches are those of test_jsonl.py")
    monkeypatch.setattr(sources, "BATCH_RECORDS", 2)
    path, append, calls = written(tmp_path, shape, [shape.record(n) for n in range(6)]), store.append, itertools.count()

    def failing(*given: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise OSError("disk full")
        return append(*given, **named)

    monkeypatch.setattr(store, "append", failing)
    with pytest.raises(OSError, match="disk full"):
        taken_in(store, path, shape)
    assert sum(store.counts().values()) == 2 * len(shape.kinds)
    report = taken_in(store, path, shape)
    assert (report.added, report.duplicates) == (4 * len(shape.kinds), 2 * len(shape.kinds))


def test_reading_is_streaming(tmp_path: Path, shape: Shape) -> None:
    """The first record is there when a small part of a large file is read."""
    path = written(tmp_path, shape, [shape.record(n % 60) for n in range(3000)])
    with open_records(path) as opened:
        assert next(opened.records).number == 1
        assert opened.place() < path.stat().st_size / 2 or shape.suffix == "parquet"  # which is read from its end


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.suffix != "parquet"])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_record_breaks_an_import(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """A good record with anything in any of its fields is taken or refused, and its neighbours are taken."""
    shape = SHAPES[name]
    broken = copy.deepcopy(shape.record(1))
    for key in data.draw(st.lists(st.sampled_from(sorted(broken)), min_size=1, max_size=2)):
        broken[key] = data.draw(JSON)
    with FeedbackStore("sqlite://") as store:
        records = [shape.record(0), broken, shape.record(2)]
        path = written(tmp_path, shape, records)
        report = import_file(store, path, format=shape.format, mapping=shape.mapping)
        assert report.rows == 3 and {one.row for one in report.refused} <= {2}
        assert report.added >= 2 * len(shape.kinds)


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        ("json", b'[{"a": 1}, {"b": ', "expected JSON, found an error"),
        ("json", b"[" * 100_000, "nested more than 100 deep"),
        ("json", b'[{"messages":' * 5000, "nested more than 100 deep"),
        ("json", b"[1, 2]", "expected an object, found int"),
        ("jsonl", b'{"messages": "x"}\n\xff\n{"a": 1, "a": 2}\nNaN\n', "expected UTF-8, found byte 0xff at position 1"),
        ("csv", b"a,b\n1,2\n\xff,3\n", "expected UTF-8, found byte 0xff in the column 'a'"),
        ("csv", b"a,a\n1,2\n", "expected columns of different names"),
        ("csv", b"prompt,reply\n1\n", "expected 2 columns, found 1"),
        ("parquet", b"PAR1 no", "expected a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(
    store: FeedbackStore, tmp_path: Path, suffix: str, content: bytes, reason: str
) -> None:
    path = tmp_path / f"export.{suffix}"
    path.write_bytes(content)
    report = import_file(store, path, format="table" if suffix in ("csv", "parquet") else "chat")
    assert any(reason in one.reason for one in report.refused), report.refused
    assert not report.taken and accounted(report)


@pytest.mark.parametrize("name", ["openwebui array", "langfuse page", "chat lines", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_record(store: FeedbackStore, tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SHAPES[name], [SHAPES[name].record(0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert taken_in(store, path, SHAPES[name]).taken == 1


def test_blank_lines_are_counted(store: FeedbackStore, tmp_path: Path) -> None:
    shape = SHAPES["chat lines"]
    path = written(tmp_path, shape, [shape.record(0)])
    path.write_text("\n" + path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    report = taken_in(store, path, shape)
    assert (report.rows, report.taken, report.blank) == (4, 1, 3)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"promt": "q"}, "mapping: unknown key 'promt', did you mean 'prompt'?"),
        ({"prompt": "q"}, "found none called q. There are: answer, question, stars, time, who."),
        ({"scores": "x"}, "mapping: unknown key 'scores'"),
    ],
)
def test_a_mapping_that_does_not_fit_imports_nothing(
    store: FeedbackStore, tmp_path: Path, mapping: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        import_file(store, written(tmp_path, SHAPES["csv"], [SHAPES["csv"].record(0)]), mapping=mapping)
    assert said in str(caught.value)
    assert not store.counts()


def test_a_file_that_breaks_off_is_imported_up_to_there_and_says_so(store: FeedbackStore, tmp_path: Path) -> None:
    shape = SHAPES["langfuse page"]
    path = written(tmp_path, shape, [shape.record(n) for n in range(9)])
    whole = path.read_bytes()
    assert taken_in(store, path, shape).whole
    path.write_bytes(whole[: len(whole) // 2])
    report = taken_in(store, path, shape)
    assert not report.whole and 0 < report.taken < 9 and accounted(report)
    assert report.refused[-1].reason.endswith("nothing after it was read")


def test_a_column_of_json_may_come_late_and_is_named_where_it_never_does(store: FeedbackStore, tmp_path: Path) -> None:
    shape = SHAPES["chat lines"]
    records = [shape.record(n) for n in range(60) for _ in range(9)]
    for record in records[:-1]:
        del record["feedback"]
    records[-1]["rating"] = records[-1].pop("feedback")
    path = written(tmp_path, shape, records)
    report = import_file(store, path, mapping={"feedback": "rating", "comment": "remark"})
    assert (report.taken, report.refused, report.absent) == (540, (), ("remark",))
    assert store.counts()["thumb"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"question": "?", "stars": 5}]', "found JSON with records that hold question, stars"),
        ('{\n"question": "?"\n}', "found JSON with records that hold question"),
        ("[[1, 2], [3, 4]]", "found JSON with no objects"),
        ('{"data": []}', "found JSON with no objects"),
    ],
)
def test_json_of_no_known_shape_is_told_the_known_ones(
    store: FeedbackStore, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "export.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        import_file(store, path)
    assert said in str(caught.value) and "openwebui, langfuse, chat" in str(caught.value)
    assert "--format" in str(caught.value)


@pytest.mark.parametrize("broken", [b'yes"}], "feedback": "up"}', b"{\xff}", b'{"id": 1, "id": 2}', b"oops"])
def test_a_broken_first_line_costs_that_line(store: FeedbackStore, tmp_path: Path, broken: bytes) -> None:
    shape = SHAPES["chat lines"]
    path = written(tmp_path, shape, [shape.record(0), shape.record(1)])
    path.write_bytes(broken + b"\n" + path.read_bytes())
    report = import_file(store, path)
    assert (report.rows, report.taken, [one.row for one in report.refused]) == (3, 2, [1])


@pytest.mark.parametrize("layout", ["%s", "[\n%s\n]", "[%s\n,\n%s]", '{"data": [\n%s\n]}', '{"n": 1,\n"data": [%s]}'])
def test_one_json_value_is_read_however_it_is_laid_out(store: FeedbackStore, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(layout.replace("%s", json.dumps(SHAPES["chat lines"].record(0))), encoding="utf-8")
    report = import_file(store, path)
    assert report.refused == () and report.taken == layout.count("%s")


@pytest.mark.parametrize("content", ["[1]\n", "oops\n", "[]\n"])
def test_a_log_whose_first_line_is_no_event_is_still_a_log(store: FeedbackStore, tmp_path: Path, content: str) -> None:
    shape = SHAPES["events"]
    path = written(tmp_path, shape, [shape.record(0)])
    path.write_text(content + path.read_text(encoding="utf-8"), encoding="utf-8")
    report = import_file(store, path)
    assert (report.taken, [one.row for one in report.refused]) == (1, [1])
