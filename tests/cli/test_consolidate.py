"""illm consolidate: sizes and errors first, then a question, then the gate's verdict."""

from __future__ import annotations

import json
from dataclasses import replace

from incremental_llm.errors import InputError


def test_a_dry_run_shows_sizes_ranks_and_errors_and_measures_nothing(illm, workspace) -> None:
    done = illm("consolidate", "--rank", "32", "--scales", "0.5,1", "--dry-run")
    assert done.exit_code == 0, done.output
    assert workspace.calls == [("plan consolidation", None, "sum", 32, None, (0.5, 1.0))]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["now", "3", "48", "3"] in rows and ["consolidated", "1", "32", "1"] in rows
    assert "by sum: relative error 0.12, at most 0.25 (model.layers.0.q_proj)" in done.stdout
    assert "next: illm consolidate --rank=32 --scales=0.5,1" in done.stderr
    told = json.loads(illm("consolidate", "--dry-run", "--json", "--last", "2").stdout)
    assert told["plan"]["before"] == {"adapters": 3, "rank": 48, "bytes": 3 * 2**20}
    assert workspace.calls[-1][:2] == ("plan consolidation", 2)


def test_it_asks_before_production_moves(illm, workspace) -> None:
    done = illm("consolidate")
    assert done.exit_code == 2 and "expected --yes, found none" in done.stderr
    assert all(call[0] != "consolidate" for call in workspace.calls)


def test_a_promoted_one_says_what_it_saves(illm, workspace) -> None:
    done = illm("consolidate", "--method", "ties", "--error", "0.1", "--yes")
    assert done.exit_code == 0, done.output
    assert ("consolidate", None) in workspace.calls
    assert ("plan consolidation", None, "ties", None, 0.1, (1.0,)) in workspace.calls
    assert f"consolidated: production is now version {workspace.outcome.version}" in done.stdout
    assert "rank 48 -> 48, 3.0 -> 1.0 MiB" in done.stdout
    assert "measuring" in done.stderr and "next: illm registry diff 3" in done.stderr


def test_a_refused_one_says_why(illm, workspace) -> None:
    workspace.outcome = replace(workspace.outcome, decision="rejected", version=None)
    done = illm("consolidate", "--yes")
    assert done.exit_code == 20
    assert "not consolidated, production stays on its stack: 3 adapters as one of rank 48 by sum" in done.stdout
    done = illm("consolidate", "--yes", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 20 and told["decision"] == "rejected" and told["version"] is None
    assert told["scores"] == {"1.0": 0.5} and told["checks"]


def test_wrong_input_is_said_so(illm, workspace) -> None:
    assert illm("consolidate", "--scales", "1,1", "--yes").exit_code == 2
    assert illm("consolidate", "--error", "1", "--yes").exit_code == 2
    assert illm("consolidate", "--last", "1").exit_code == 2
    workspace.fail = InputError("consolidate: expected two adapters or more")
    assert illm("consolidate", "--yes").exit_code == 2
