from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from incremental_llm.errors import CommitError, InputError, NothingToTrainError, WorkspaceBusyError
from incremental_llm.nightly import LOADING, run_nightly, summary

OUTCOME: dict[str, Any] = {
    "decision": "promoted",
    "version": 4,
    "reasons": ("better on shop_night3",),
    "replay": "Replay: +3 old rows interleaved (10.0 % of 30).",
    "notes": ("kto: skipped, 1 examples, 2 needed",),
    "tokens": 1200,
    "seconds": 61.4,
    "folder": Path("illm/runs/v4"),
}


class Workspace:
    """Runs `act`, and keeps whether it was closed."""

    def __init__(self, act: Any) -> None:
        self.act = act
        self.closed = False

    def run(self, progress: Any, train: Any = None) -> Any:
        progress("training", 1, 1, None)
        return self.act()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def nightly(monkeypatch, tmp_path):
    """Run a night whose work is the function given; returns the result, what was said, and the workspace."""
    config = SimpleNamespace(workspace=tmp_path, base="tiny", consolidation=SimpleNamespace(automatic=False))

    def night(act: Any) -> tuple[tuple[int, str], list[str], Workspace]:
        workspace, said = Workspace(act), []
        module: Any = ModuleType("incremental_llm.workspace")
        module.Workspace = SimpleNamespace(open=lambda found: workspace)
        monkeypatch.setitem(sys.modules, "incremental_llm.workspace", module)
        return run_nightly(config, said.append, lambda *step: said.append(step[0])), said, workspace

    return night


def fail(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(("decision", "code"), [("promoted", 0), ("rejected", 20), ("quarantined", 30)])
def test_the_decision_is_the_exit_code(nightly, decision: str, code: int, tmp_path) -> None:
    (found, text), said, workspace = nightly(lambda: SimpleNamespace(**{**OUTCOME, "decision": decision}))
    assert found == code
    assert text.splitlines()[0].startswith("promoted" if decision == "promoted" else "rejected")
    assert said == [f"nightly run in {tmp_path}, base tiny", LOADING, "training"]
    assert workspace.closed


def test_nothing_to_train_is_10(nightly) -> None:
    result, _, workspace = nightly(fail(NothingToTrainError("no new feedback since event 5")))
    assert result == (10, "no new feedback since event 5")
    assert workspace.closed


def test_any_other_error_is_raised(nightly) -> None:
    for error in (CommitError("someone moved production"), RuntimeError("?")):
        with pytest.raises(type(error)):
            nightly(fail(error))


def test_a_held_workspace_is_75_and_says_by_whom(nightly) -> None:
    result, _, workspace = nightly(fail(WorkspaceBusyError("expected no other run, found process 7")))
    assert result == (75, "expected no other run, found process 7")
    assert workspace.closed


def test_the_summary_has_the_reasons_and_where_to_look() -> None:
    assert summary(SimpleNamespace(**OUTCOME)) == (
        "promoted: production is now version 4",
        "  because better on shop_night3",
        "  Replay: +3 old rows interleaved (10.0 % of 30).",
        "  kto: skipped, 1 examples, 2 needed",
        "  1200 tokens trained, 61 s; all results in illm/runs/v4",
    )


def test_no_workspace_is_the_callers_mistake(monkeypatch, tmp_path) -> None:
    module: Any = ModuleType("incremental_llm.workspace")
    module.Workspace = SimpleNamespace(open=lambda config: fail(InputError("none"))())
    monkeypatch.setitem(sys.modules, "incremental_llm.workspace", module)
    with pytest.raises(InputError):
        run_nightly(SimpleNamespace(workspace=tmp_path, base="tiny"), print, lambda *step: None)
