"""What a workspace's report says after a rollback, and after a suite got other items."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.report import ReportData, results_json
from incremental_llm.report.history import history
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, copy_suite, night, write_log

Config = Callable[..., RunConfig]


@pytest.fixture
def lenient(tiny_config: Config) -> RunConfig:
    """A gate that lets a second night forget the first: it is the report that is tested here."""
    config = tiny_config()
    return config.model_copy(update={"gate": config.gate.model_copy(update={"max_correction_losses": 1.0})})


def report(workspace: Workspace) -> ReportData:
    return history(workspace.registry, workspace.config.workspace, title="t", seed=0)


def test_a_version_that_a_rollback_undid_is_no_column(tmp_path: Path, lenient: RunConfig) -> None:
    with Workspace.create(lenient) as workspace:
        for number, texts in ((1, (GOOD, BAD)), (2, (BAD, GOOD))):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, *texts)))
            assert workspace.run().decision == "promoted"
        assert report(workspace).versions == ("base", "v1", "v2")
        workspace.rollback(to=1, reason="a test")
        data = report(workspace)
        assert data.versions == ("base", "v1")
        assert data.production == 3
        assert [night.decision for night in data.nights] == ["promoted", "promoted"]
        assert [row.version for row in data.lineage] == [0, 1, 2, 3]


def test_metrics_that_count_from_the_base_are_left_out_without_its_report(tmp_path: Path, lenient: RunConfig) -> None:
    with Workspace.create(lenient) as workspace:
        for number, texts in ((1, (GOOD, BAD)), (2, (BAD, GOOD))):
            workspace.import_feedback(write_log(tmp_path / f"n{number}.jsonl", night(number, *texts)))
            workspace.run()
            if number == 1:
                shutil.rmtree(workspace.config.workspace / "runs")
        assert report(workspace).metrics == {}
        assert results_json(report(workspace))["metrics"]["fwt"] is None


def test_a_suite_with_other_items_is_not_compared_with_what_it_was(tmp_path: Path, lenient: RunConfig) -> None:
    with Workspace.create(lenient) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        workspace.run()
        assert set(report(workspace).against_base) == {"tiny"}

        head, items = (lenient.suites.folder / "tiny" / name for name in ("suite.yaml", "items.jsonl"))
        head.write_text(head.read_text(encoding="utf-8").replace("version: 1", "version: 2"), encoding="utf-8")
        items.write_text(items.read_text(encoding="utf-8").replace("Count to 3", "Count up to 3"), encoding="utf-8")
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", night(2, BAD, GOOD)))
        second = workspace.run()
        assert second.decision == "promoted", second.reasons
        data = report(workspace)
        assert data.versions == ("base", "v1", "v2")
        assert data.against_base == {}
        assert set(results_json(data)["scores"]) == {"tiny"}


def test_a_report_needs_no_suite_files(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    copy_suite(config, "tiny2")
    head = config.suites.folder / "tiny" / "suite.yaml"
    head.write_text(head.read_text(encoding="utf-8") + "superseded_by: [c1]\n", encoding="utf-8")
    roles = config.suites.model_copy(update={"old": ("tiny", "tiny2")})
    allowed = config.compile.model_copy(update={"policy_reviewers": frozenset({"r0"})})
    config = config.model_copy(update={"suites": roles, "compile": allowed})
    change = {"type": "policy_change", "id": "c1", "time": "2026-11-01T14:00:00Z", "reviewer": "r0", "supersedes": []}
    said: list[str] = []
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), change]))
        assert workspace.run().decision == "promoted"
        assert workspace.superseded_suites(say=said.append) == ("tiny",)
        assert said == []

        bare = roles.model_copy(update={"old": ()})
        moved = roles.model_copy(update={"folder": tmp_path / "moved"})
        for suites, line in ((bare, "the recipe names no suites"), (moved, "not available: tiny, tiny2 (")):
            workspace.config = config.model_copy(update={"suites": suites})
            page = workspace.report(tmp_path / "report.html", say=said.append)
            assert "superseded" in page.read_text(encoding="utf-8")
            assert workspace.superseded_suites() == ("tiny",)
            assert said.pop().startswith(line)
            assert said == []
