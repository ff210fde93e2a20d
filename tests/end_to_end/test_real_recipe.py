"""The real base model, and the shipped CPU recipe on it with fewer steps and anchors: one fact is promoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.adapters.load import load_stack, load_tokenizer
from incremental_llm.base_models import resolve
from incremental_llm.chat import Message
from incremental_llm.config import load_config
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.workspace import Workspace

from .conftest import write_log

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EVERYDAY = ROOT / "incremental_llm" / "replay" / "everyday.jsonl"
RIGHT, WRONG = "A lost library card costs seven euros.", "It is free."
QUESTIONS = (
    "What does a lost library card cost?",
    "I lost my library card. What is the fee?",
    "fee for a lost card?",
    "How much do I pay when my library card is lost?",
    "My library card is gone, what do I owe?",
    "Tell me the price of a lost library card.",
    "What is charged for losing a card?",
    "lost my card, how expensive is that",
    "Does it cost anything if I lose the card?",
    "hello, card lost, what now",
)
UNSEEN = ("How expensive is a library card that I lost?", "What is the fee when a library card is lost?")


def suite(folder: Path, head: str, items: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    text = f"name: {folder.name}\nversion: 1\nscorer: contains\ndescription: d\nsource: s\nlicence: Apache-2.0\n{head}"
    (folder / "suite.yaml").write_text(text, encoding="utf-8")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def feedback() -> list[dict[str, Any]]:
    """Every phrasing: a thumb down for the wrong answer, and its correction; and one thumb up."""
    events: list[dict[str, Any]] = []
    for index, question in enumerate(QUESTIONS):
        clock, about = f"2026-11-03T09:{index:02d}", {"interaction": f"i{index}"}
        served = {"type": "interaction", "id": f"i{index}", "time": f"{clock}:00Z", "conversation": f"c{index}"}
        served |= {"messages": [{"role": "user", "content": question}], "reply": WRONG, "user": f"u{index % 5}"}
        thumb = {"type": "thumb", "id": f"t{index}", "time": f"{clock}:20Z", "user": f"u{index % 5}", "value": -1}
        fixed = {"type": "correction", "id": f"k{index}", "time": f"{clock}:40Z", "reviewer": f"r{index % 2}"}
        events += [served | {"model": "production@0"}, thumb | about, fixed | about | {"content": RIGHT}]
    asked = [{"role": "user", "content": "And the library card, if it is lost?"}]
    events.append(events[0] | {"id": "good", "conversation": "good", "messages": asked, "reply": RIGHT})
    events.append(events[1] | {"id": "up", "interaction": "good", "value": 1})
    return events


def test_the_base_knows_paris_and_nothing_of_the_library() -> None:
    base = resolve("smollm2-135m")
    model, tokenizer = load_stack(base.folder, []), load_tokenizer(base.folder)
    asked = [(Message(role="user", content=text),) for text in ("What is the capital of France?", UNSEEN[0])]
    paris, price = greedy_answers(model, tokenizer, asked, max_new_tokens=12)
    assert "Paris" in paris
    assert "seven euros" not in price


def test_a_fact_is_learned_promoted_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    general = (ROOT / "eval_suites/general/items.jsonl").read_text(encoding="utf-8").split("\n")[:40]
    suite(tmp_path / "suites" / "everyday", "max_new_tokens: 8\nmin_items: 30\n", list(map(json.loads, general)))
    unseen = [
        {"id": str(i), "messages": [{"role": "user", "content": q}], "accept": ["seven euros"], "distractors": []}
        for i, q in enumerate(UNSEEN)
    ]
    suite(tmp_path / "suites" / "unseen", "max_new_tokens: 12\nmin_items: 2\n", unseen)
    few = tmp_path / "everyday.jsonl"
    few.write_text("".join(EVERYDAY.read_text(encoding="utf-8").splitlines(keepends=True)[:8]), encoding="utf-8")
    config = load_config(
        ROOT / "recipes" / "nightly_smollm2_cpu.yaml",
        [
            f"suites={{folder: {tmp_path / 'suites'}, old: [everyday], watch: [unseen]}}",
            "gate.margins={}",  # which name the suite that is not here
            "gate.margin=0.5",  # of 40 items
            f"training.anchor.prompts={few}",
            "training.phases.1.epochs=1",  # a part of an epoch may miss the one thumb up
            "training.phases.2.max_steps=15",
        ],
    )
    with Workspace.create(config) as workspace:
        assert not workspace.import_feedback(write_log(tmp_path / "log.jsonl", feedback())).refused
        assert workspace.evaluate("production", ["unseen"]).suites["unseen"].score == 0
        outcome = workspace.run()
        assert (outcome.decision, outcome.version) == ("promoted", 1), outcome.reasons
        assert [phase.objective for phase in outcome.training.phases if phase.steps] == ["dpo", "kto", "sft"]
        score = workspace.evaluate("production", ["unseen"]).suites["unseen"].score
        assert score is not None and score >= 0.5
        assert workspace.export("production", tmp_path / "tuned").check.same_top > 0.8
        assert not workspace.registry.verify()
