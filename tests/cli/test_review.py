"""illm review, on a database of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from incremental_llm.cli import app
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.review import Flag, ReviewQueue, flagged

SEED = {"prompt": "How long?", "reply": "For ever.", "expected": "reject"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'feedback.db'}"


@pytest.fixture
def illm(database: str) -> Any:
    def invoke(*words: str, input: str | bytes | None = None) -> Any:
        return CliRunner().invoke(app, ["review", *words, "--set", f"database={database}"], input=input)

    return invoke


@pytest.fixture
def item(database: str) -> str:
    """A safety flag on the reply of i1, and the id of its item."""
    with FeedbackStore(database) as store:
        served = parse_event(
            {"type": "interaction", "id": "i1", "time": "2026-11-01T12:00:00Z", "conversation": "c", "user": "u",
             "messages": [{"role": "user", "content": "How long\x1b[2J?"}], "reply": "Take \u202etwo.", "model": "m"}
        )  # fmt: skip
        store.append([served])
        flag = Flag(interaction="i1", kind="safety", verdict="dose", confidence=0.75)
        proposal = flagged(flag, served, "guard")  # type: ignore[arg-type]
        ReviewQueue(store).add([proposal])
    return proposal.id


def taught(database: str) -> list[Any]:
    with FeedbackStore(database) as store:
        return [stored.event for stored in store.read() if stored.event.type != "interaction"]


def test_what_is_to_review_is_listed_and_shown_without_doing_anything_to_the_terminal(illm: Any, item: str) -> None:
    listed = illm("list")
    assert listed.exit_code == 0
    for word in (item, "safety", "dose", "0.75", "1 open, 0 claimed, 0 waiting, 0 done"):
        assert word in listed.stdout
    shown = illm("show", item)
    assert "guard: dose, 0.75 sure" in shown.stdout
    for text in (listed.stdout, shown.stdout):
        assert "\x1b" not in text
        assert "\u202e" not in text
    record = json.loads(illm("show", item, "--json").stdout)
    assert record["reply"] == "Take \u202etwo."
    assert "expected" not in record
    assert json.loads(illm("list", "--kind", "conflict", "--json").stdout)["items"] == []
    wrong = illm("list", "--kind", "unsafe")
    assert (wrong.exit_code, "expected a kind out of conflict" in wrong.stderr) == (2, True)


def test_two_people_decide_and_the_bytes_of_a_file_are_trained(
    illm: Any, item: str, database: str, tmp_path: Path
) -> None:
    claimed = illm("next", "--reviewer", "r1")
    assert item in claimed.stdout
    assert f"next: illm review decide {item} accept --reviewer r1" in claimed.stderr
    assert "nothing to review for r2" in illm("next", "--reviewer", "r2").stdout
    text = "  Ask a\r\ndoctor. \n"
    (tmp_path / "right.txt").write_bytes(text.encode())
    first = illm("decide", item, "correct", "--file", "right.txt", "--reviewer", "r1")
    assert "it counts when another reviewer says the same" in first.stdout
    assert taught(database) == []
    second = illm("decide", item, "correct", "--file", "-", "--reviewer", "r2", "--json", input=text.encode())
    assert json.loads(second.stdout)["state"] == "done"
    assert [event.content for event in taught(database)] == [text, text]
    assert item in illm("list", "--done").stdout
    report = illm("report")
    assert "r1" in report.stdout
    assert "1 of 1 (0.21 to 1.00)" in report.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("maybe", "--reviewer", "r1"), "found 'maybe'"),
        (("correct", "--reviewer", "r1"), "the right reply with correct, found none"),
        (("correct", "--content", "a", "--file", "b", "--reviewer", "r1"), "found both"),
        (("correct", "--file", "none.txt", "--reviewer", "r1"), "none.txt: expected a text in UTF-8"),
        (("accept", "--reviewer", "u"), "who said some of it"),
    ],
)
def test_a_decision_that_does_not_fit_is_wrong_input(
    illm: Any, item: str, database: str, words: tuple[str, ...], found: str
) -> None:
    done = illm("decide", item, *words)
    assert done.exit_code == 2
    assert found in done.stderr
    assert taught(database) == []
    assert illm("show", "nothing").exit_code == 2


def test_seeds_are_mixed_in_and_reported(illm: Any, database: str, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text(json.dumps(SEED) + "\n", encoding="utf-8")
    assert "1 added, 0 known already; 5% of what a reviewer gets" in illm("seed", "seeds.jsonl").stdout
    assert json.loads(illm("seed", "seeds.jsonl", "--json").stdout) == {"added": 0, "known": 1}
    (listed,) = json.loads(illm("list", "--json").stdout)["items"]
    assert illm("decide", listed["id"], "accept", "--reviewer", "r1").exit_code == 0
    (row,) = json.loads(illm("report", "--json").stdout)["reviewers"]
    assert (row["reviewer"], row["caught"]["right"], row["caught"]["n"]) == ("r1", 0, 1)
    assert taught(database) == []
    assert "none has decided anything" not in illm("report").stdout


def test_an_empty_queue_has_its_words(illm: Any) -> None:
    assert "to review: nothing" in illm("list").stdout
    assert "nothing to review for r1" in illm("next", "-r", "r1").stdout
    assert illm("next", "-r", "r1", "--json").stdout.strip() == "null"
    assert "none has decided anything" in illm("report").stdout


def test_filling_is_one_call(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fill_review(low_margin: int, progress: Any) -> int:
        asked.append(low_margin)
        return 3

    monkeypatch.setattr(workspace, "fill_review", fill_review, raising=False)
    done = CliRunner().invoke(app, ["review", "fill", "--low-margin", "5"])
    assert (done.stdout.strip(), asked) == ("3 new to review", [5])
