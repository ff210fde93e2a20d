"""What docs/imports.md shows can be pasted: each example gives events with the commands under it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.importers import import_file

DOCS = Path(__file__).resolve().parents[3] / "docs" / "imports.md"
COMMAND = "$ illm feedback import "


def blocks() -> list[str]:
    """The indented blocks, without what a command prints."""
    text = DOCS.read_text(encoding="utf-8").replace("\\\n", "")
    found = re.findall(r"(?:^    .*\n)+", text, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in found]


def examples() -> Iterator[tuple[str, str]]:
    """(content, command) of each example: the lines of a file, and what imports them."""
    content = ""
    for block in blocks():
        if not block.startswith(COMMAND):
            content = block
        elif not block.startswith(COMMAND + "feedback-history-export.json"):
            for command in block.splitlines():
                yield content, command.removeprefix(COMMAND)


def test_the_examples_are_found() -> None:
    assert [command.split()[0] for _, command in examples()] == [*["traces.jsonl"] * 2, *["calls.jsonl"] * 2, "log.csv"]


@pytest.mark.parametrize(("content", "command"), list(examples()))
def test_an_example_can_be_pasted(tmp_path: Path, content: str, command: str) -> None:
    name, *options = shlex.split(command)
    assert options[::2] == ["--map"] * (len(options) // 2)
    mapping = dict(option.split("=", 1) for option in options[1::2])
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with FeedbackStore("sqlite://") as store:
        report = import_file(store, path, mapping=mapping)
        assert (report.rows, report.taken, report.refused, report.absent) == (1, 1, (), ())
        assert store.counts()["thumb"] == 1
