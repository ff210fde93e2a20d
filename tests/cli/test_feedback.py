from __future__ import annotations

import json
from pathlib import Path

import pytest

from incremental_llm.feedback import ImportReport, RefusedRow


def test_import_accounts_for_every_line(illm, workspace) -> None:
    Path("a.jsonl").write_text("{}\n", encoding="utf-8")
    done = illm("feedback", "import", "a.jsonl")
    assert done.exit_code == 0
    assert "a.jsonl: 5 rows, 3 taken, 1 blank; 2 events added, 1 known already; 1 refused" in done.stdout
    assert "a.jsonl:3: expected JSON, found 'oops'" in done.stdout
    assert "1 of unknown type 'page_view'" in done.stdout
    assert "7 rows before them were read by an earlier import" in done.stdout
    assert "reading a.jsonl 4/4 (100 %)" in done.stderr
    assert "next: illm dataset show" in done.stderr


def test_import_refuses_before_it_begins_when_a_file_is_missing(illm, workspace) -> None:
    Path("a.jsonl").write_text("{}\n", encoding="utf-8")
    done = illm("feedback", "import", "a.jsonl", "b.jsonl")
    assert done.exit_code == 2
    assert "no such file: b.jsonl. Nothing was imported." in done.stderr
    assert workspace.calls == []


def test_what_is_no_file_is_not_called_missing(illm, workspace) -> None:
    done = illm("feedback", "import", "/dev/null")
    assert done.exit_code == 2
    assert "found a folder, a device or a pipe: /dev/null" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"whole": False}, "a.csv: expected to read it to its end, found a part that cannot be read"),
        ({"absent": ("rating",)}, "a.csv: expected the columns that the mapping names, found no row with rating"),
    ],
)
def test_an_import_that_is_not_all_of_the_file_fails_after_it_is_shown(
    illm, workspace, monkeypatch, more, said
) -> None:
    found = ImportReport(rows=2, taken=2, added=2, duplicates=0, waiting=0, unknown_types={}, refused=(), **more)
    monkeypatch.setattr(workspace, "import_feedback", lambda path, progress, **told: found)
    Path("a.csv").write_text("a,b\n", encoding="utf-8")
    done = illm("feedback", "import", "a.csv")
    assert done.exit_code == 2 and said in " ".join(done.stderr.split())
    assert "2 taken" in done.stdout
    assert ("not read to its end" in done.stdout) == ("whole" in more)


def test_import_as_json(illm, workspace) -> None:
    Path("a.jsonl").write_text("{}\n", encoding="utf-8")
    done = illm("feedback", "import", "a.jsonl", "--json")
    found = json.loads(done.stdout)
    assert found["head"] == 8
    assert found["files"]["a.jsonl"]["refused"] == [{"row": 3, "reason": "expected JSON, found 'oops'"}]
    assert "next:" not in done.output


def test_an_import_says_what_the_file_is_and_which_column_is_which(illm, workspace) -> None:
    Path("a.csv").write_text("q,a\n", encoding="utf-8")
    illm("feedback", "import", "a.csv", "--format", "table", "--map", "prompt=q", "--map", "reply=a")
    assert ("import", "a.csv", "table", ("prompt", "q"), ("reply", "a")) in workspace.calls


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--format", "csv"), "--format: expected one of events, openwebui, langfuse, chat, table, found 'csv'"),
        (("--map", "prompt"), "--map: expected KEY=VALUE, such as prompt=question, found 'prompt'"),
        (("--map", "user=a", "--map", "user=b"), "--map: expected each key once, found 'user' twice"),
    ],
)
def test_an_import_that_is_not_understood_begins_nothing(illm, workspace, given, said) -> None:
    Path("a.csv").write_text("q,a\n", encoding="utf-8")
    done = illm("feedback", "import", "a.csv", *given)
    assert done.exit_code == 2 and said in " ".join(done.stderr.split())
    assert not any(call[0] == "import" for call in workspace.calls)


def test_status_counts_what_is_new(illm, workspace) -> None:
    done = illm("feedback", "status")
    assert "read up to event 5 of 8" in done.stdout
    assert "new since then: 3, of them 1 quarantined" in done.stdout
    assert "thumb t9" in done.stdout
    assert "next: illm dataset show" in done.stderr
    found = json.loads(illm("feedback", "status", "--json").stdout)
    assert found["events"] == {"interaction": 5, "thumb": 3}
    assert (found["new"], found["new_quarantined"], found["waiting"]) == (3, 1, 1)


def test_a_file_without_one_event_is_wrong_input(illm, workspace, monkeypatch) -> None:
    refused = tuple(RefusedRow(line, "expected JSON") for line in range(1, 31))
    found = ImportReport(rows=30, taken=0, added=0, duplicates=0, waiting=0, unknown_types={}, refused=refused)
    monkeypatch.setattr(workspace, "import_feedback", lambda path, progress, **told: found)
    Path("a.csv").write_text("a,b\n", encoding="utf-8")
    done = illm("feedback", "import", "a.csv")
    assert done.exit_code == 2
    assert "and 10 more refused rows (all of them with --json)" in done.stdout
    assert "a.csv: expected feedback, found not one event" in done.stderr
