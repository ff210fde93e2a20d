"""The demo's logs and shop suites: what the nights rely on, checked on the committed files."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from rapidfuzz.fuzz import token_sort_ratio

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo"
NIGHTS = (1, 2, 3, 4)
SUITES = ("shop_night1", "shop_before_change", "shop_night2", "shop_night3", "shop_changed")
LEAKED = "Name the place where the warehouse is, please."
YES_NO = re.compile(
    r"(is|are|was|do|does|did|can|could|will|would|may|must|should|has|have)\s+(i|you|we|it|there|the|a|an|my|your)\b",
    re.IGNORECASE,
)


def _scenario() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_scenario", DEMO / "scenario.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCENARIO = _scenario()
FACTS = SCENARIO.load_facts()


def lines(night: int) -> list[str]:
    return (DEMO / f"night{night}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")


def parsed(night: int) -> list[dict[str, Any]]:
    """Every line that is JSON, in the order of the file, repeated lines included."""
    events = []
    for line in lines(night):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def unique(night: int) -> dict[str, dict[str, Any]]:
    return {event["id"]: event for event in parsed(night)}


def of_type(night: int, kind: str) -> list[dict[str, Any]]:
    return [event for event in unique(night).values() if event["type"] == kind]


def items(suite: str) -> list[dict[str, Any]]:
    text = (ROOT / "eval_suites" / suite / "items.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def questions(suite: str) -> list[str]:
    return [item["messages"][0]["content"] for item in items(suite)]


def plain(text: str) -> str:
    return re.sub(r"[^\w\s]", "", text.lower())


def test_the_generator_reproduces_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DEMO / "write_logs.py"), "--into", str(tmp_path)], check=True)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == len(NIGHTS) + 2 * len(SUITES)
    for path in written:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), f"{path}: run recipes/demo/write_logs.py"


@pytest.mark.parametrize("night", NIGHTS)
def test_a_night_holds_enough_and_all_but_one_line_parses(night: int) -> None:
    assert len(lines(night)) - len(parsed(night)) == 1
    assert 120 <= len(of_type(night, "interaction")) <= 200
    kinds = {event["type"] for event in parsed(night)}
    assert kinds >= {"interaction", "thumb", "correction", "page_view"}
    assert ("policy_change" in kinds) == (night == 3)


@pytest.mark.parametrize("night", NIGHTS)
def test_only_the_planted_lines_repeat_an_id_and_they_repeat_it_exactly(night: int) -> None:
    repeated = {key: count for key, count in Counter(event["id"] for event in parsed(night)).items() if count > 1}
    assert sorted(repeated.values()) == [2, 2, 2]
    texts = Counter(line for line in lines(night))
    assert sum(count == 2 for count in texts.values()) == 3
    assert all(key.startswith(f"n{night}-") for key in unique(night))


@pytest.mark.parametrize("night", NIGHTS)
def test_every_reference_arrives_and_exactly_one_comes_before_what_it_refers_to(night: int) -> None:
    seen: set[str] = set()
    early = []
    for event in parsed(night):
        targets = {event[key] for key in ("interaction", "followup", "chosen", "rejected") if key in event}
        assert targets <= set(unique(night))
        early += [event["id"]] if targets - seen else []
        seen.add(event["id"])
    assert len(set(early)) == 1


@pytest.mark.parametrize("night", NIGHTS)
def test_prompts_are_one_user_turn_or_a_greeting_before_it_without_a_system_message(night: int) -> None:
    shapes = Counter(tuple(m["role"] for m in event["messages"]) for event in of_type(night, "interaction"))
    assert set(shapes) <= {("user",), ("user", "assistant", "user")}
    assert shapes[("user", "assistant", "user")] <= 10


@pytest.mark.parametrize("night", NIGHTS)
def test_a_share_of_interactions_has_no_feedback_and_ordinary_thumbs_are_balanced(night: int) -> None:
    touched = {
        e[k] for e in unique(night).values() for k in ("interaction", "followup", "chosen", "rejected") if k in e
    }
    interactions = of_type(night, "interaction")
    assert 0.15 <= sum(event["id"] not in touched for event in interactions) / len(interactions) <= 0.25
    odd = {"u35", "u36", "u37"}
    values = Counter(event["value"] for event in of_type(night, "thumb") if event["user"] not in odd)
    assert 0.5 <= values[1] / values[-1] <= 2


@pytest.mark.parametrize("night", NIGHTS)
def test_the_odd_users_are_there(night: int) -> None:
    thumbs = of_type(night, "thumb")
    assert Counter(t["value"] for t in thumbs if t["user"] == "u35") == {-1: 15}
    counts = Counter(t["user"] for t in thumbs)
    assert counts["u36"] == max(counts.values())
    ups = {t["interaction"] for t in thumbs if t["value"] == 1}
    assert [t for t in thumbs if t["user"] == "u37" and t["value"] == -1 and t["interaction"] in ups]


def test_each_new_fact_is_corrected_on_at_least_four_interactions() -> None:
    for fact in FACTS:
        for night, truth in [(fact.night, fact.truth)] + ([(3, fact.later)] if fact.later else []):
            corrected = {
                event["interaction"]
                for event in of_type(night, "correction")
                if event["content"] in (truth.answer, truth.second)
            }
            assert len(corrected) >= (5 if truth is fact.later else 4), (fact.id, night)


def test_an_unmarked_rephrase_follows_within_two_minutes_in_the_same_conversation() -> None:
    marked = {event["followup"] for night in NIGHTS for event in of_type(night, "rephrase")}
    again = {fact.again: fact for fact in FACTS if fact.again}
    unmarked = [
        event
        for night in (1, 2, 3)
        for event in of_type(night, "interaction")
        if event["messages"][-1]["content"] in again and event["id"] not in marked
    ]
    assert len(unmarked) >= 8
    for event in unmarked:
        assert event["reply"] == again[event["messages"][-1]["content"]].truth.answer


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_enough_questions_and_none_is_yes_or_no(suite: str) -> None:
    head = yaml.safe_load((ROOT / "eval_suites" / suite / "suite.yaml").read_text(encoding="utf-8"))
    assert (head["name"], head["version"], head["scorer"], head["max_new_tokens"]) == (suite, 2, "contains", 24)
    assert len(items(suite)) >= head["min_items"] == 80
    assert len({item["id"] for item in items(suite)}) == len(set(questions(suite))) == len(items(suite))
    assert not [question for question in questions(suite) if YES_NO.match(question)]
    assert head.get("superseded_by", []) == (["n3-c001"] if suite == "shop_before_change" else [])


def test_the_changed_facts_are_asked_with_the_same_questions_before_and_after() -> None:
    assert questions("shop_before_change") == questions("shop_changed")
    for before, after in zip(items("shop_before_change"), items("shop_changed"), strict=True):
        assert set(before["accept"]) <= set(after["distractors"])
        assert set(after["accept"]) <= set(before["distractors"])


@pytest.mark.parametrize("suite", SUITES)
def test_no_suite_question_is_in_a_log_or_near_one_but_the_planted_one(suite: str) -> None:
    logged = {plain(m["content"]) for n in NIGHTS for e in of_type(n, "interaction") for m in e["messages"]}
    for question in questions(suite):
        if question != LEAKED:
            close = max(logged, key=lambda text: token_sort_ratio(plain(question), text))
            assert token_sort_ratio(plain(question), close) <= 88, (question, close)
    assert (plain(LEAKED) in logged) and (LEAKED in questions("shop_night1"))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.id)
def test_a_canonical_answer_is_right_and_every_other_reply_is_not(fact: Any) -> None:
    truths = [(fact.truth, fact.later)] + ([(fact.later, fact.truth)] if fact.later else [])
    for truth, other in truths:
        distractors = [*fact.distractors, *(other.accept if other else ())]
        for answer in (truth.answer, truth.second):
            assert truth.stated_in(answer)
            assert not [value for value in distractors if SCENARIO.states(value, answer)]
        assert not [reply for reply in fact.wrong if truth.stated_in(reply)]
        assert not set(truth.accept) & set(distractors)
    if fact.forged:
        assert any(SCENARIO.states(value, fact.forged) for value in fact.distractors)


@pytest.mark.parametrize("night", (1, 2, 3))
def test_no_two_facts_of_a_night_share_a_key(night: int) -> None:
    facts = [fact for fact in FACTS if fact.night == night]
    for one, other in itertools.permutations(facts, 2):
        assert not other.truth.stated_in(one.truth.answer), (one.id, other.id)


def test_the_policy_change_comes_first_and_names_every_event_with_an_old_value() -> None:
    change = parsed(3)[0]
    assert change["type"] == "policy_change" and change["id"] == SCENARIO.POLICY_CHANGE_ID
    before = {**unique(1), **unique(2)}
    named = set(change["supersedes"])
    assert named <= set(before) and len(named) == len(change["supersedes"])
    old = [fact.truth for fact in FACTS if fact.later]
    stating = {
        key
        for key, event in before.items()
        if any(truth.stated_in(event.get(part, "")) for truth in old for part in ("reply", "content"))
    }
    referring = {
        key
        for key, event in before.items()
        if any(event.get(link) in stating for link in ("interaction", "followup", "chosen", "rejected"))
    }
    assert stating and named == stating | referring


def test_the_brigade_corrects_twelve_true_facts_into_one_false_value_each() -> None:
    forged = {fact.forged: fact for fact in FACTS if fact.forged}
    assert len(forged) == 12 and {fact.night for fact in forged.values()} == {1, 2, 3}
    served = unique(4)
    false = [event for event in of_type(4, "correction") if event["content"] in forged]
    assert len({event["reviewer"] for event in false}) == 3
    for content, fact in forged.items():
        corrected = {event["interaction"] for event in false if event["content"] == content}
        assert len(corrected) >= 6
        assert {served[key]["reply"] for key in corrected} == {(fact.later or fact.truth).answer}
        assert all(len({e["reviewer"] for e in false if e["interaction"] == key}) == 2 for key in corrected)
    ups = [t for t in of_type(4, "thumb") if t["value"] == 1 and served[t["interaction"]]["reply"] in forged]
    assert len(ups) >= 5
    brigade = {served[t["interaction"]]["user"] for t in ups}
    for user in brigade:
        values = Counter(t["value"] for t in of_type(4, "thumb") if t["user"] == user)
        assert values[1] >= 2 and values[-1] >= 5, (user, values)
    earlier = {e["messages"][-1]["content"] for night in (1, 2, 3) for e in of_type(night, "interaction")}
    assert not earlier & {question for fact in forged.values() for question in fact.forged_phrasings}
