"""The anchor prompts: those of the package, or a user's own file read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incremental_llm.chat import Message
from incremental_llm.errors import InputError
from incremental_llm.replay.anchor import anchor_prompts


def line(key: str, *messages: tuple[str, str]) -> str:
    """One line of an anchor file."""
    return json.dumps({"id": key, "messages": [{"role": r, "content": c} for r, c in messages]}, ensure_ascii=False)


def test_the_package_has_enough_different_prompts_that_end_with_the_user() -> None:
    prompts = anchor_prompts()
    assert 50 <= len(prompts) <= 100 and len(set(prompts)) == len(prompts)
    assert all(prompt[-1].role == "user" for prompt in prompts)


def test_a_file_of_ones_own_takes_their_place(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [line("a", ("user", "One\u2028line?")), "", line("b", ("system", "Be brief."), ("user", "Two?"))]
    path.write_text("\n".join(lines), encoding="utf-8")
    first, second = anchor_prompts(path)
    assert first == (Message(role="user", content="One\u2028line?"),)
    assert second == (Message(role="system", content="Be brief."), Message(role="user", content="Two?"))


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '{"id": "b"}',
        '{"id": 3, "messages": []}',
        '{"id": "b", "messages": 4}',
        '{"id": "b", "messages": [{"role": "robot", "content": "x"}]}',
        line("b"),
        line("b", ("user", "  ")),
        line("b", ("user", "x"), ("assistant", "y")),
        line("a", ("user", "the same id")),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line("a", ("user", "One?")) + "\n" + bad + "\n")
    with pytest.raises(InputError, match=r"own\.jsonl:2: expected"):
        anchor_prompts(path)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        anchor_prompts(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="found none"):
        anchor_prompts(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        anchor_prompts(tmp_path / "binary.jsonl")
