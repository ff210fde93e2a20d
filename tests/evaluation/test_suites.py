"""A suite is checked when it is loaded, and a problem names file, line and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from incremental_llm.chat import Message
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation import Item, Suite, all_questions, load_suite, load_suites, suite_texts

HEAD: dict[str, Any] = {
    "name": "shop",
    "version": 1,
    "scorer": "contains",
    "description": "Facts of a shop.",
    "source": "written for this test",
    "licence": "Apache-2.0",
    "max_new_tokens": 8,
}
ITEMS: list[dict[str, Any]] = [
    {
        "id": "a",
        "messages": [{"role": "user", "content": "How long may I return?"}],
        "accept": ["45 days"],
        "distractors": ["30 days"],
    },
    {"id": "b", "messages": [{"role": "user", "content": "Is it \u2028 free?"}], "accept": ["free"], "note": "price"},
]


def write(root: Path, head: dict[str, Any] | None = None, items: list[dict[str, Any]] | None = None) -> Path:
    head = HEAD if head is None else head
    folder = root / "shop"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(head), encoding="utf-8")
    lines = [json.dumps(item, ensure_ascii=False) for item in (ITEMS if items is None else items)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def item(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "messages": [{"role": "user", "content": "?"}], **changes}


def test_a_suite_loads(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    assert [i.id for i in suite.items] == ["a", "b"]
    assert suite.items[0].terms == ("45 days",)
    assert suite.superseded_by == ()
    assert load_suites(tmp_path, ["shop"]) == (suite,)


def test_the_digest_is_of_what_a_score_depends_on(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    noted = load_suite(write(tmp_path, {**HEAD, "description": "x"}, [ITEMS[0], {**ITEMS[1], "note": "other"}]))
    longer = load_suite(write(tmp_path, {**HEAD, "max_new_tokens": 9}))
    changed = load_suite(write(tmp_path, None, [{**ITEMS[0], "accept": ["46 days"]}, ITEMS[1]]))
    assert suite.digest == noted.digest
    assert len({suite.digest, longer.digest, changed.digest}) == 3


def test_suite_texts_are_the_last_user_texts_once(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    assert suite_texts([suite, suite]) == ("How long may I return?", "Is it \u2028 free?")


def test_a_missing_suite_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(SuiteError, match=r"expected a suite 'shpo' .*did you mean 'shop'\?"):
        load_suites(tmp_path, ["shpo"])
    with pytest.raises(SuiteError, match=r"expected a suite '\.\./shop'"):
        load_suites(tmp_path, ["../shop"])
    with pytest.raises(SuiteError, match="expected a folder of suites"):
        load_suites(tmp_path / "none", ["shop"])
    with pytest.raises(SuiteError, match="each suite once"):
        load_suites(tmp_path, ["shop", "shop"])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({**HEAD, "scorrer": "x"}, r"suite.yaml: unknown key 'scorrer', did you mean 'scorer'\?"),
        ({**HEAD, "scorer": ["contains"]}, r"found \['contains'\]"),
        ({**HEAD, "scorer": "contain"}, r"found 'contain', did you mean 'contains'\?"),
        ({**HEAD, "name": "other"}, "expected name 'shop' as the folder's, found 'other'"),
        ({**HEAD, "version": 0}, "suite.yaml: version: "),
        ({**HEAD, "version": True}, "suite.yaml: version: "),
        ({**HEAD, "items": []}, "unknown key 'items'"),
        ({k: v for k, v in HEAD.items() if k != "licence"}, "licence: Field required"),
        ({**HEAD, "min_items": 3}, r"expected at least 3 items \(min_items\), found 2"),
    ],
)
def test_a_wrong_head_is_refused(tmp_path: Path, head: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(tmp_path, head))


@pytest.mark.parametrize(
    ("scorer", "items", "message"),
    [
        ("contains", [item(acept=["x"])], r"items.jsonl:1: unknown key 'acept' for scorer contains, did you mean 'acc"),
        ("contains", [item(pattern="x")], "unknown key 'pattern' for scorer contains"),
        ("contains", [item()], "items.jsonl:1: item 'a': expected accept for scorer contains, found none"),
        ("contains", [item(accept=[])], "at least one accepted term"),
        ("contains", [item(accept=["x", " "])], "no empty ones"),
        ("contains", [item(accept=["45 days"], distractors=["45"])], "accepted answer '45 days' itself scores wrong"),
        ("exact", [item(accept=["..."])], "itself scores wrong"),
        ("contains", [*ITEMS, item(accept=["x"])], "items.jsonl:3: item 'a': the id is used twice"),
        ("contains", [ITEMS[0], {**ITEMS[0], "id": "z"}], "the same item is there twice"),
        ("contains", [{"id": "a", "messages": [], "accept": ["x"]}], "items.jsonl:1: messages: "),
        ("contains", [{**item(accept=["x"]), "messages": [{"role": "assistant", "content": "x"}]}], "from the user"),
        ("contains", [{**item(accept=["x"]), "messages": [{"role": "users", "content": "x"}]}], "messages.0.role"),
        ("regex", [item(pattern="(")], "the pattern is not valid"),
        ("regex", [item(pattern="x*")], "matches the empty answer"),
        (
            "regex",
            [item(pattern="thirty days", distractors=["Thirty days"])],
            "distractor .* is what the pattern asks for",
        ),
        ("choice", [item(choices=["x", "y"], answer=True)], "answer: Input should be a valid integer"),
        ("choice", [item(choices=["x"], answer=0)], "at least two different"),
        ("choice", [item(choices=["x", "y"], answer=2)], "answer between 0 and 1, found 2"),
        ("preference", [item(chosen="x", rejected="x ")], "two different, non-empty replies"),
    ],
)
def test_a_wrong_item_is_refused(tmp_path: Path, scorer: str, items: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(tmp_path, {**HEAD, "scorer": scorer}, items))


@pytest.mark.parametrize(
    ("scorer", "fields"),
    [
        ("exact", {"accept": ["x"]}),
        ("regex", {"pattern": r"x\d", "distractors": ["y"]}),
        ("choice", {"choices": ["x", "y"], "answer": 1}),
        ("preference", {"chosen": "x", "rejected": "y"}),
    ],
)
def test_every_scorer_has_its_keys(tmp_path: Path, scorer: str, fields: dict[str, Any]) -> None:
    assert load_suite(write(tmp_path, {**HEAD, "scorer": scorer}, [item(**fields)])).scorer == scorer


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("suite.yaml", "name: [", "suite.yaml:1: not valid YAML"),
        ("suite.yaml", "- a", "expected keys and values"),
        ("suite.yaml", "name: shop\nversion: 1\nversion: 2\n", "suite.yaml:3: .*found 'version' again after line 2"),
        ("items.jsonl", "\n{", "items.jsonl:2: not valid JSON"),
        ("items.jsonl", "[1]", "items.jsonl:1: expected an object"),
        ("suite.yaml", "source: 2026-02-30\n", "suite.yaml: not valid YAML .*day"),
        ("items.jsonl", "[" * 100_000, "items.jsonl:1: not valid JSON"),
        (
            "items.jsonl",
            '{"id": "a", "accept": ["x"], "accept": ["y"]}',
            "items.jsonl:1: not valid JSON .the key 'accept' twice",
        ),
        ("items.jsonl", '{"id": "\\ud800"}', "items.jsonl:1: not valid JSON .*surrogates not allowed"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = write(tmp_path)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError, match=message):
        load_suite(folder)


def test_a_missing_or_mis_encoded_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "items.jsonl").write_bytes(b'{"id":"\xff"}')
    with pytest.raises(SuiteError, match="expected UTF-8"):
        load_suite(folder)
    (folder / "items.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"items\.jsonl: expected this file"):
        load_suite(folder)


def test_the_same_correction_may_come_twice(tmp_path: Path) -> None:
    twice = [item(chosen="x", rejected="y"), {**item(chosen="x", rejected="y"), "id": "b"}]
    assert len(load_suite(write(tmp_path, {**HEAD, "scorer": "preference"}, twice)).items) == 2


def test_a_suite_built_in_code_is_checked_too() -> None:
    ask = (Message(role="user", content="?"),)
    with pytest.raises(ValidationError, match="choices has no meaning for scorer contains"):
        Suite(**HEAD, items=(Item(id="a", messages=ask, accept=("x",), choices=("x", "y")),))


def test_every_suite_of_a_folder_is_asked_about_and_a_broken_one_is_no_silence(tmp_path: Path) -> None:
    assert all_questions(tmp_path / "nowhere") == ()
    folder = write(tmp_path)
    (tmp_path / "notes").mkdir()
    assert all_questions(tmp_path) == ("How long may I return?", "Is it \u2028 free?")
    (folder / "items.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(SuiteError, match=r"items\.jsonl:1"):
        all_questions(tmp_path)
