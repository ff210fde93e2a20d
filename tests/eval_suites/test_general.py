"""The general suite: its items are sound, echo-proof, and disjoint from the everyday anchor prompts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rapidfuzz import fuzz, process, utils

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "eval_suites" / "general"
EVERYDAY = ROOT / "incremental_llm" / "replay" / "everyday.jsonl"
NEAR_SAME = 80  # token_sort_ratio from which two questions count as the same
YES_NO_OPENERS = re.compile(
    r"^(is|are|am|was|were|do|does|did|can|could|will|would|should|shall|may|has|have|had)\b", re.IGNORECASE
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


ITEMS = read_lines(SUITE / "items.jsonl")
ANCHORS = read_lines(EVERYDAY)


def question(item: dict[str, Any]) -> str:
    return str(item["messages"][-1]["content"])


def occurs(phrase: str, text: str) -> bool:
    """Whether `phrase` is in `text` as whole words, whatever the case and the spacing."""
    wanted, found = (" ".join(part.casefold().split()) for part in (phrase, text))
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", found) is not None


def scored_right(answer: str, item: dict[str, Any]) -> bool:
    return any(occurs(a, answer) for a in item["accept"]) and not any(occurs(d, answer) for d in item["distractors"])


def test_header() -> None:
    header = yaml.safe_load((SUITE / "suite.yaml").read_text(encoding="utf-8"))
    assert {key: header[key] for key in ("name", "version", "scorer", "licence", "max_new_tokens", "min_items")} == {
        "name": "general",
        "version": 4,
        "scorer": "contains",
        "licence": "Apache-2.0",
        "max_new_tokens": 16,
        "min_items": 200,
    }
    assert header["source"] and header["description"]


def test_counts_and_ids() -> None:
    assert [item["id"] for item in ITEMS] == [f"g{i:03d}" for i in range(1, 802)]
    assert Counter(item["note"] for item in ITEMS) == {"knowledge": 496, "arithmetic": 101, "instruction": 204}


def test_items_have_one_user_turn_and_clean_lists() -> None:
    for item in ITEMS:
        assert set(item) == {"id", "messages", "accept", "distractors", "note"}, item["id"]
        assert [message["role"] for message in item["messages"]] == ["user"], item["id"]
        assert item["accept"], item["id"]
        assert len(item["distractors"]) <= 4, item["id"]
        for texts in (item["accept"], item["distractors"]):
            assert all(text and text == text.strip() for text in texts), item["id"]
            assert len({text.casefold() for text in texts}) == len(texts), item["id"]


def test_a_bare_right_answer_is_right() -> None:
    for item in ITEMS:
        for accepted in item["accept"]:
            assert scored_right(accepted, item), (item["id"], accepted)
            assert scored_right(f"{accepted.capitalize()}.", item), (item["id"], accepted)


def test_repeating_the_question_is_wrong() -> None:
    for item in ITEMS:
        assert not scored_right(question(item), item), item["id"]


def test_an_empty_or_evasive_answer_is_wrong() -> None:
    evasive = "I'm sorry, I don't have an answer to that. Can I help you with anything else?"
    for item in ITEMS:
        assert not scored_right("", item), item["id"]
        assert not scored_right(evasive, item), item["id"]


def test_no_yes_or_no_items() -> None:
    for item in ITEMS:
        assert not YES_NO_OPENERS.match(question(item)), item["id"]
        assert not {"yes", "no", "true"} & {accepted.casefold() for accepted in item["accept"]}, item["id"]


def test_no_question_is_asked_twice() -> None:
    assert len({utils.default_process(question(item)) for item in ITEMS}) == len(ITEMS)


def test_anchor_prompts_are_well_formed() -> None:
    assert [anchor["id"] for anchor in ANCHORS] == [f"a{i:02d}" for i in range(1, 101)]
    for anchor in ANCHORS:
        roles = [message["role"] for message in anchor["messages"]]
        assert roles in (["user"], ["user", "assistant", "user"]), anchor["id"]
        assert all(message["content"].strip() for message in anchor["messages"]), anchor["id"]
    short = [anchor for anchor in ANCHORS if len(question(anchor).split()) < 20]
    assert len(short) >= 60


@pytest.mark.parametrize("prepare", [str, utils.default_process])
def test_anchor_prompts_and_items_are_disjoint(prepare: Any) -> None:
    asked = [prepare(question(item)) for item in ITEMS]
    said = [prepare(m["content"]) for anchor in ANCHORS for m in anchor["messages"] if m["role"] == "user"]
    ratios = process.cdist(said, asked, scorer=fuzz.token_sort_ratio)
    assert ratios.max() < NEAR_SAME


def test_anchor_prompts_differ_from_each_other() -> None:
    said = [utils.default_process(question(anchor)) for anchor in ANCHORS]
    ratios = process.cdist(said, said, scorer=fuzz.token_sort_ratio)
    assert all(ratios[i, j] < NEAR_SAME for i in range(len(said)) for j in range(i))
