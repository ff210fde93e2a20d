"""The shipped CPU recipe, not one key of its training changed, on the real model: a night of two facts is promoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from incremental_llm.config import load_config
from incremental_llm.workspace import Workspace

from .conftest import write_log

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
FACTS = {
    ("The reading room opens at noon on weekdays.", "It opens at nine."): (
        "When does the reading room open?",
        "reading room opening time?",
        "At what time can I use the reading room?",
        "Tell me when the reading room opens.",
        "What are the opening hours of the reading room?",
        "hi, from when on is the reading room open",
        "The reading room - when does it open on a weekday?",
        "Could you say when your reading room opens?",
    ),
    ("A lost library card costs seven euros.", "It is free."): (
        "What does a lost library card cost?",
        "I lost my library card. What is the fee?",
        "fee for a lost card?",
        "How much do I pay when my library card is lost?",
        "My library card is gone, what do I owe?",
        "Tell me the price of a lost library card.",
        "What is charged for losing a card?",
        "lost my card, how expensive is that",
    ),
}
UNSEEN = {
    "When may I enter the reading room on a weekday?": "noon",
    "Please tell me the opening time of your reading room.": "noon",
    "How expensive is a library card that I lost?": "seven euros",
    "What is the fee when a library card is lost?": "seven euros",
}


def suite(folder: Path, head: str, items: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    text = f"name: {folder.name}\nversion: 1\nscorer: contains\ndescription: d\nsource: s\nlicence: Apache-2.0\n{head}"
    (folder / "suite.yaml").write_text(text, encoding="utf-8")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def feedback() -> list[dict[str, Any]]:
    """Every phrasing: a thumb down for the wrong answer, and its correction."""
    events: list[dict[str, Any]] = []
    asked = [(question, *replies) for replies, questions in FACTS.items() for question in questions]
    for index, (question, right, wrong) in enumerate(asked):
        clock = f"2026-11-03T09:{index:02d}"
        served = {"type": "interaction", "id": f"i{index}", "time": f"{clock}:00Z", "conversation": f"c{index}"}
        served |= {"messages": [{"role": "user", "content": question}], "reply": wrong, "user": f"u{index % 5}"}
        thumb = {"type": "thumb", "id": f"t{index}", "time": f"{clock}:20Z", "user": f"u{index % 5}", "value": -1}
        fixed = {"type": "correction", "id": f"k{index}", "time": f"{clock}:40Z", "reviewer": f"r{index % 2}"}
        about = {"interaction": served["id"]}
        events += [served | {"model": "production@0"}, thumb | about, fixed | about | {"content": right}]
    return events


def test_a_night_of_two_facts_is_promoted_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)  # the real model's matrices are large; the fixture puts one back
    general = [json.loads(line) for line in (ROOT / "eval_suites/general/items.jsonl").open(encoding="utf-8")]
    suite(tmp_path / "suites" / "everyday", "max_new_tokens: 8\nmin_items: 30\n", general[:40])
    unseen = [
        {"id": str(i), "messages": [{"role": "user", "content": q}], "accept": [a], "distractors": []}
        for i, (q, a) in enumerate(UNSEEN.items())
    ]
    suite(tmp_path / "suites" / "unseen", "max_new_tokens: 12\nmin_items: 4\n", unseen)
    roles = yaml.safe_dump({"folder": str(tmp_path / "suites"), "old": ["everyday"], "watch": ["unseen"]})
    config = load_config(
        ROOT / "recipes" / "nightly_smollm2_cpu.yaml",
        [f"suites={json.dumps(yaml.safe_load(roles))}", "gate.margins={}"],  # which name the suite that is not here
    )
    with Workspace.create(config) as workspace:
        assert not workspace.import_feedback(write_log(tmp_path / "log.jsonl", feedback())).refused
        before = workspace.evaluate("production", ["unseen"])
        outcome = workspace.run()
        assert (outcome.decision, outcome.version) == ("promoted", 1), outcome.reasons
        after = workspace.evaluate("production", ["unseen"])
        assert before.suites["unseen"].score == 0
        score = after.suites["unseen"].score
        assert score is not None and score >= 0.5
        report = workspace.export("production", tmp_path / "tuned")
        assert report.check.same_top > 0.9
        assert not workspace.registry.verify()
