"""The demo's facts as records, and the shop suites that ask for them.

facts.yaml is the one source: `load_facts` reads it, `write_suites` writes eval_suites/shop_*; write_logs.py makes the
feedback of the four nights from the same records, so that a log and a suite never disagree about what is true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
POLICY_CHANGE_ID = "n3-c001"


@dataclass(frozen=True)
class Truth:
    """One canonical reply, another wording of it, and the forms its key may take."""

    answer: str
    second: str
    accept: tuple[str, ...]

    def stated_in(self, text: str) -> bool:
        return any(states(key, text) for key in self.accept)


@dataclass(frozen=True)
class Fact:
    """One fact of facts.yaml; `later` is its truth from night 3 on where that changes."""

    id: str
    night: int
    truth: Truth
    distractors: tuple[str, ...]
    wrong: tuple[str, ...]
    log_phrasings: tuple[str, ...]
    suite_phrasings: tuple[str, ...]
    again: str | None
    later: Truth | None
    forged: str | None
    forged_phrasings: tuple[str, ...]

    def truth_served_on(self, night: int) -> Truth:
        """What a model serves on `night` that learned everything of the nights before."""
        return self.later if self.later and night > 3 else self.truth


def states(key: str, text: str) -> bool:
    """Whether `key` occurs in `text` as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", " ".join(text.split()), re.IGNORECASE) is not None


def load_facts(path: Path = HERE / "facts.yaml") -> tuple[Fact, ...]:
    return tuple(_fact(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["facts"])


def _fact(entry: dict[str, Any]) -> Fact:
    later, forged = entry.get("new"), entry.get("forged", {})
    return Fact(
        id=entry["id"],
        night=entry["night"],
        truth=_truth(entry),
        distractors=tuple(entry["distractors"]),
        wrong=tuple(entry["wrong"]),
        log_phrasings=tuple(entry["log_phrasings"]),
        suite_phrasings=tuple(entry["suite_phrasings"]),
        again=entry.get("again"),
        later=_truth(later) if later else None,
        forged=forged.get("answer"),
        forged_phrasings=tuple(forged.get("phrasings", ())),
    )


def _truth(entry: dict[str, Any]) -> Truth:
    return Truth(entry["answer"], entry["second"], tuple(entry["accept"]))


def load_small_talk(path: Path = HERE / "smalltalk.yaml") -> tuple[tuple[str, str], ...]:
    return tuple((question, reply) for question, reply in yaml.safe_load(path.read_text(encoding="utf-8")))


def item(suite: str, fact: Fact, turn: int, *, changed: bool = False) -> dict[str, Any]:
    """One suite item; the other truth of a changed fact is always a distractor."""
    truth, other = (fact.later, fact.truth) if changed and fact.later else (fact.truth, fact.later)
    return {
        "id": f"{suite}/{fact.id}/{turn + 1}",
        "messages": [{"role": "user", "content": fact.suite_phrasings[turn]}],
        "accept": list(truth.accept),
        "distractors": [*fact.distractors, *(other.accept if other else ())],
    }


def write_suite(
    folder: Path, facts: Sequence[Fact], description: str, *, changed: bool = False, superseded: bool = False
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "name": folder.name,
        "version": 2,
        "scorer": "contains",
        "description": description,
        "source": "recipes/demo/facts.yaml, written for this project",
        "licence": "Apache-2.0",
        "max_new_tokens": 24,
        "min_items": 80,
    }
    if superseded:
        head["superseded_by"] = [POLICY_CHANGE_ID]
    items = [item(folder.name, f, turn, changed=changed) for f in facts for turn in range(len(f.suite_phrasings))]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in items)
    (folder / "suite.yaml").write_text(yaml.safe_dump(head, sort_keys=False, width=110), encoding="utf-8", newline="\n")
    (folder / "items.jsonl").write_text(text, encoding="utf-8", newline="\n")


def write_suites(root: Path, facts: Sequence[Fact]) -> None:
    """The five shop suites below `root`."""
    stable = {n: [fact for fact in facts if fact.night == n and not fact.later] for n in (1, 2, 3)}
    changing = [fact for fact in facts if fact.later]
    write_suite(root / "shop_night1", stable[1], "Shipping and returns: the facts of night 1 that stay true.")
    write_suite(
        root / "shop_before_change",
        changing,
        "Shipping and returns: the facts of night 1 that are true until the policy change of night 3.",
        superseded=True,
    )
    write_suite(root / "shop_night2", stable[2], "Products and warranty: the facts of night 2.")
    write_suite(root / "shop_night3", stable[3], "Stores, workshop, club and rentals: the new facts of night 3.")
    write_suite(
        root / "shop_changed",
        changing,
        "The facts that night 3 changes: the new answer is right, the old one is wrong.",
        changed=True,
    )
