"""Compressed exports are the exports that they hold, and damage is named where it begins."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.importers import format_of, import_file
from incremental_llm.feedback.importers.records import open_records

from .shapes import SHAPES

READ = [name for name, shape in SHAPES.items() if shape.format != "events" and shape.suffix != "parquet"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def packed(tmp_path: Path, name: str, count: int = 6) -> tuple[Path, Path]:
    """A file of the shape, and the same compressed."""
    shape = SHAPES[name]
    path = tmp_path / f"export.{shape.suffix}"
    shape.write(path, [shape.record(n % 60) for n in range(count)])
    into = tmp_path / f"export.{shape.suffix}.gz"
    into.write_bytes(gzip.compress(path.read_bytes()))
    return path, into


@pytest.mark.parametrize("name", READ)
def test_gzip_gives_what_the_file_in_it_gives(store: FeedbackStore, tmp_path: Path, name: str) -> None:
    path, into = packed(tmp_path, name)
    assert format_of(into) == format_of(path) == SHAPES[name].format
    steps: list[tuple[int, int]] = []
    first = import_file(store, into, mapping=SHAPES[name].mapping, progress=lambda *step: steps.append(step))
    again = import_file(store, path, mapping=SHAPES[name].mapping)
    assert (first.taken, first.refused, first.whole) == (6, (), True)
    assert (again.added, again.duplicates) == (0, first.added)
    assert steps[-1] == (into.stat().st_size, into.stat().st_size)  # in bytes of the file, as its size is


@pytest.mark.parametrize("name", [name for name in READ if name != "langfuse page"])  # one line, read before it begins
def test_a_damaged_file_is_imported_up_to_there(store: FeedbackStore, tmp_path: Path, name: str) -> None:
    """Whether it ends too early or its bytes are others, reading ends with a reason, and what was taken is whole."""
    _, into = packed(tmp_path, name, 600)
    content = into.read_bytes()
    for seed in range(8):
        rng = random.Random(seed)
        damaged = bytearray(content)
        if seed % 2:
            del damaged[rng.randrange(len(content) // 2, len(content) - 1) :]
        else:
            damaged[rng.randrange(len(content) // 2, len(content))] ^= 0xFF
        into.write_bytes(damaged)
        report = import_file(store, into, format=SHAPES[name].format, mapping=SHAPES[name].mapping)
        assert not report.whole and report.refused
        assert report.refused[-1].reason.endswith("nothing after it was read")


def test_gzip_is_read_as_a_stream(tmp_path: Path) -> None:
    _, into = packed(tmp_path, "chat lines", 2)
    record = gzip.decompress(into.read_bytes()).splitlines(keepends=True)[0]
    into.write_bytes(gzip.compress(record + random.Random(0).randbytes(1 << 20)))
    with open_records(into) as opened:
        assert next(opened.records).data
        assert opened.place() < into.stat().st_size / 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "log.jsonl.gz",
            gzip.compress(b'{"type": "view"}\n'),
            "found gzip. Unpack it, such as with gunzip",
        ),
        ("log.jsonl", gzip.compress(b'{"type": "view"}\n'), "expected an event log that is not compressed"),
        ("log.csv.zip", b"PK\x03\x04 and more", "expected a plain file or gzip, found zip. Unpack it first"),
        ("log.csv", b"\x28\xb5\x2f\xfd and more", "found zstd"),
        ("log.parquet.gz", gzip.compress(b"PAR1"), "from its end, found gzip. Unpack it"),
        ("log.csv.gz", gzip.compress(b"prompt,reply\n" * 99)[:12], "expected a whole gzip file"),
    ],
    ids=["gzip events", "gzip by its bytes", "zip", "zstd", "gzip parquet", "cut gzip"],  # the bytes hold the time
)
def test_what_cannot_be_read_so_says_what_to_do(
    store: FeedbackStore, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        import_file(store, path)
    assert store.mark(str(path)) is None
