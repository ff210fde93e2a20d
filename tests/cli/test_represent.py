from __future__ import annotations

import json
from pathlib import Path

from incremental_llm.dataset.representation import Group, Representation


def test_represent_shows_the_quietest_groups_first(illm, workspace) -> None:
    quiet = Group(dimension="topic", value="tents", served=40, judged=0, used=0, ratio=0.02, low=0.001, high=0.39)
    loud = quiet.model_copy(update={"value": "boots", "judged": 20, "used": 5, "ratio": 2.0, "low": 1.1, "high": 3.5})
    workspace.heard = Representation(
        served=80, judged=20, used=5, users=9, silent_users=7, loudest_share=0.5, groups=(quiet, *[loud] * 25)
    )
    done = illm("feedback", "represent")
    assert done.exit_code == 0
    assert "80 replies served, 20 judged, 5 behind what production was trained on" in done.stdout
    assert "7 of 9 users never judged one" in done.stdout
    assert "50% of all feedback is from the tenth of its givers who give most" in done.stdout
    assert done.stdout.index("topic: tents") < done.stdout.index("topic: boots")
    assert "0.02 (0.00 to 0.39)" in done.stdout
    assert "and 6 more (all of them with --json)" in done.stdout
    assert "next: illm feedback held-out OUT.jsonl" in done.stderr
    found = json.loads(illm("feedback", "represent", "--json").stdout)
    assert found["groups"][0]["value"] == "tents" and len(found["groups"]) == 26


def test_held_out_counts_what_it_wrote(illm, workspace) -> None:
    done = illm("feedback", "held-out", "sample.jsonl")
    assert "sample.jsonl: 2 replies, 1 judged; 2 users liked one, 1 did not" in done.stdout
    found = json.loads(illm("feedback", "held-out", "sample.jsonl", "--json").stdout)
    assert found == {"file": "sample.jsonl", "replies": 2, "judged": 1, "up": 2, "down": 1}


def test_held_out_overwrites_nothing(illm, workspace) -> None:
    Path("log.jsonl").write_text("{}\n", encoding="utf-8")
    done = illm("feedback", "held-out", "log.jsonl")
    assert done.exit_code == 2 and "log.jsonl exists" in done.stderr
    assert workspace.calls == []
