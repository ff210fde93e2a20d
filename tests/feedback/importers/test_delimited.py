"""CSV that is broken in places: a row costs itself, never what comes after it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.importers import ImportReport, delimited, import_file
from incremental_llm.feedback.importers.delimited import read_delimited

MAPPING = {"prompt": "question", "reply": "answer", "user": "who", "default_time": "2026-11-01T12:00:00Z"}
HEADER = b"question,answer,who\n"


def row(n: int) -> bytes:
    return f"How long {n}?,{n} days.,u{n}\n".encode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def imported(store: FeedbackStore, tmp_path: Path, content: bytes) -> ImportReport:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    return import_file(store, path, mapping=MAPPING)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"Stra\xdfe?,14 days.,u\n", "expected UTF-8, found byte 0xdf in the column 'question'"),
        (b'"How long?,14 days.,u\n', "found a fault in its quoting (unexpected end of data)"),
        (b'"How"d long?,14 days.,u\n', "found a fault in its quoting (',' expected after '\"')"),
        (b"How\rlong?,14 days.,u\n", "found a fault in its line ends"),
        (b"How long?,14 days.\n", "expected 3 columns, found 2"),
        (b'"How\nlong?",14 days.\n', "expected 3 columns, found 2 in 2 lines, which its quotes hold together"),
        (b"x" * 5000 + b",14 days.,u\n", "a line of more than 4000 bytes"),
        (b'"a\n' + b"x" * 5000 + b'",14 days.,u\n', "a line of more than 4000 bytes"),
    ],
)
def test_a_broken_row_costs_that_row(
    store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, reason: str
) -> None:
    monkeypatch.setattr(delimited, "MAX_FIELD", 4000)
    rows = [row(n) for n in range(30)]
    rows[15] = bad
    report = imported(store, tmp_path, HEADER + b"".join(rows))
    assert (report.rows, report.taken, report.whole) == (30, 29, True)
    ((number, said),) = [(one.row, one.reason) for one in report.refused]
    assert number == 16 and reason in said


def test_a_stray_quote_takes_no_rows_with_it_where_others_are_quoted(store: FeedbackStore, tmp_path: Path) -> None:
    rows = [f'"How ""long"", {n}?","{n}\ndays.",u{n}\n'.encode() for n in range(10)]
    rows[2] = b'"How long?,14 days.,u\n'
    report = imported(store, tmp_path, HEADER + b"".join(rows))
    assert (report.rows, report.taken, [one.row for one in report.refused]) == (10, 9, [3])
    assert {event.event.reply for event in store.read()} == {f"{n}\ndays." for n in range(10) if n != 2}  # type: ignore[union-attr]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rows_around_any_bytes_are_read(data: st.DataObject) -> None:
    """Lines of any bytes stand between good rows, one of them with quotes (two could hold a row of many lines together,
    as CSV does): all good rows are read, in their order, and numbers have no gap."""
    junk = st.binary(max_size=8).map(lambda raw: raw.replace(b"\n", b""))
    lines, good = [], []
    quotes_at = data.draw(st.integers(0, 7))
    for n in range(8):
        if n == quotes_at:
            lines.append(data.draw(junk | st.sampled_from((b'"', b'a,"b', b'"",""x', b'"a"b,"'))))
        elif data.draw(st.booleans()):
            lines.append(data.draw(junk).replace(b'"', b""))
        else:
            good.append({"a": f"n{n}", "b": "x"})
            lines.append(data.draw(st.sampled_from((f"n{n},x", f'"n{n}",x', f'n{n},"x"'))).encode())
    _, records = read_delimited(io.BytesIO(b"a,b\n" + b"\n".join(lines)), ",")
    found = list(records)
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert [one.data for one in found if one.data in good] == good
    blank = sum(one.data is None and not one.reason for one in found)
    assert blank <= sum(not line.strip(b"\r") for line in lines)


def test_a_broken_row_is_searched_through_once() -> None:
    """Quotes that never close, one after the other, are no work that grows with the square of the file."""
    reads = 0

    class Counted(delimited._Lines):
        def __next__(self) -> str:
            nonlocal reads
            reads += 1
            return super().__next__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_Lines", Counted)
        content = b"a,b\n" + b'"x\n' + b'1,2\n1,"2""\n3,4\n' * 500
        _, records = read_delimited(io.BytesIO(content), ",")
        assert sum(one.data is not None for one in records) >= 1000
    assert reads < 3 * content.count(b"\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("question,answer,who\nq,a,u\n".encode("utf-16"), "expected UTF-8, found byte 0xff"),
        ("question,größe,who\nq,a,u\n".encode("latin-1"), "expected UTF-8, found byte 0xf6 in the column 'gr\ufffd"),
        (b"question,question,who\nq,a,u\n", "expected columns of different names"),
        (b'"question,answer,who\nq,a,u\n', "found a fault in its quoting (unexpected end of data)"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_with_its_reason(
    store: FeedbackStore, tmp_path: Path, content: bytes, reason: str
) -> None:
    report = imported(store, tmp_path, content)
    assert report.all_refused and not report.whole
    assert reason in report.refused[0].reason and report.refused[0].reason.endswith("nothing was read")


def test_a_table_without_rows_is_an_empty_import(store: FeedbackStore, tmp_path: Path) -> None:
    report = imported(store, tmp_path, b"\n" + HEADER)
    assert (report.rows, report.refused, report.absent, report.all_refused) == (0, (), (), False)
    with pytest.raises(InputError, match=r"found none called answer\. There are: question, who\."):
        imported(store, tmp_path, b"question,who\n")


def test_columns_are_those_of_the_header_whatever_the_rows_are(store: FeedbackStore, tmp_path: Path) -> None:
    report = imported(store, tmp_path, HEADER + b"Stra\xdfe?,a,u\n" * 600)
    assert len(report.refused) == 600 and report.all_refused and "0xdf" in report.refused[0].reason


def test_columns_named_request_and_response_are_columns(store: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"request,response,user,time\nHow long?,14 days.,u1,2026-11-01\n")
    report = import_file(store, path, mapping={"prompt": "request", "reply": "response"})
    assert (report.taken, report.refused) == (1, ())
