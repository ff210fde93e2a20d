from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from incremental_llm.chat import Message
from incremental_llm.cli import console, dataset
from incremental_llm.cli.dataset import segments


class LetterTokenizer:
    """A token is a byte; 0 ends a turn. Enough of a tokenizer for `chat_tokens`."""

    chat_template = "letters"
    all_special_ids = (0,)
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def apply_chat_template(self, messages, *, add_generation_prompt: bool, tokenize: bool) -> str:
        text = "".join(f"{m['role'][0]}:{m['content']}\0" for m in messages)
        return text + ("a:" if add_generation_prompt else "")

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids) -> str:
        return bytes(ids).decode("utf-8", "replace").replace("\0", "<end>")

    def convert_ids_to_tokens(self, index: int) -> str:
        return "<end>"


@pytest.fixture
def letters(workspace, monkeypatch) -> None:
    monkeypatch.setattr(workspace, "tokenizer", LetterTokenizer(), raising=False)


def test_segments_are_the_context_and_each_trained_token() -> None:
    context, trained = segments(LetterTokenizer(), (Message(role="user", content="Hi"),), "né🙂")
    assert context == "u:Hi<end>a:"
    assert trained == ("n", "é", "🙂", "<end>")


def test_show_marks_the_trained_tokens(illm, workspace, letters) -> None:
    done = illm("dataset", "show")
    assert done.exit_code == 0
    assert "u:How long?<end>a:[[45 days.<end>]]" in done.stdout
    assert "u:How long?<end>a:[[No idea.<end>]]" in done.stdout
    assert "--- pair, weight 0.5, from i1, k1 of 1 user" in done.stdout
    assert "undesirable, 7 trained tokens:" in done.stdout
    assert "sft: personal_data" in done.stdout
    assert "next: illm run --dry-run" in done.stderr
    assert workspace.calls == [("compile",)]


def test_show_colours_them_on_a_terminal(illm, workspace, letters, monkeypatch) -> None:
    monkeypatch.setattr(console, "terminal", lambda: True)
    monkeypatch.setattr(dataset, "terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = illm("dataset", "show").stdout
    assert "\x1b[32m4\x1b[0m\x1b[92m5\x1b[0m" in shown  # two greens in turn, so that tokens can be told apart
    assert "\x1b[31mN\x1b[0m" in shown
    assert "[[" not in shown


def test_show_as_json_needs_no_tokenizer(illm, workspace) -> None:
    found = json.loads(illm("dataset", "show", "--json", "-n", "1").stdout)
    assert found["records"] == {"sft": 1, "pair": 1, "unpaired": 1}
    assert found["dropped"] == {"sft: personal_data": 1}
    assert found["events"] == {
        "interaction: used": 2,
        "thumb: used": 1,
        "correction: used": 1,
        "correction: personal_data": 1,
    }
    assert found["samples"]["pair"][0]["rejected"] == "No idea."


def test_show_without_records_still_accounts_for_the_events(illm, workspace) -> None:
    nothing = {"sft": (), "pairs": (), "unpaired": (), "outcomes": {"thumb": {"conflict": 1}}}
    workspace.dataset = workspace.dataset.model_copy(update=nothing)
    done = illm("dataset", "show")
    assert done.exit_code == 0
    assert "thumb: conflict" in done.stdout
