"""Suites: versioned evaluation items with the scorer that judges them. No torch.

A suite is a folder: `suite.yaml` (name, version, scorer, description, source, licence, max_new_tokens, min_items and
optionally superseded_by) beside `items.jsonl`, one item a line with an id and messages, and then

    contains, exact   accept: [terms], distractors: [terms that must be absent]
    regex             pattern: one pattern, distractors
    choice            choices: [options], answer: index of the right one, by log-likelihood
    preference        chosen, rejected: replies compared by log-likelihood

The one design fact: everything is checked when it is loaded, down to "each accepted answer scores right by its own
scorer" and "no distractor is what the pattern asks for", because an item that cannot be answered looks exactly like a
model that cannot answer.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from incremental_llm.chat import Message, json_digest, last_user_text
from incremental_llm.errors import SuiteError
from incremental_llm.evaluation.scorers import TEXT_SCORERS, normalise
from incremental_llm.strict_json import parse_json
from incremental_llm.strict_yaml import parse_yaml

Scorer = Literal["contains", "exact", "regex", "choice", "preference"]

_KEYS: Mapping[str, frozenset[str]] = {
    "contains": frozenset({"accept", "distractors"}),
    "exact": frozenset({"accept", "distractors"}),
    "regex": frozenset({"pattern", "distractors"}),
    "choice": frozenset({"choices", "answer"}),
    "preference": frozenset({"chosen", "rejected"}),
}
_OPTIONAL = frozenset({"distractors"})


class Item(BaseModel):
    """One question with what makes an answer right; which keys are set depends on the suite's scorer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    accept: tuple[str, ...] | None = None
    distractors: tuple[str, ...] | None = None
    pattern: str | None = None
    choices: tuple[str, ...] | None = None
    answer: int | None = Field(None, strict=True)
    chosen: str | None = None
    rejected: str | None = None
    note: str | None = None

    @property
    def terms(self) -> tuple[str, ...]:
        """What a text scorer looks for: the accepted terms, or the pattern."""
        return (self.pattern,) if self.pattern is not None else self.accept or ()


class Suite(BaseModel):
    """Items under one scorer; `superseded_by` names the policy changes after which its truth no longer holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    version: int = Field(ge=1, strict=True)
    scorer: Scorer
    description: str
    source: str
    licence: str
    max_new_tokens: int = Field(default=32, ge=1, strict=True)
    min_items: int = Field(default=1, ge=1, strict=True)
    superseded_by: tuple[str, ...] = ()
    items: tuple[Item, ...]

    @cached_property
    def digest(self) -> str:
        """Equal for equal scorer, answer length and items (notes aside): what a score depends on."""
        return json_digest(
            {
                "scorer": self.scorer,
                "max_new_tokens": self.max_new_tokens,
                "items": [item.model_dump(mode="json", exclude={"note"}, exclude_none=True) for item in self.items],
            }
        )

    @property
    def contract(self) -> str:
        """Digest of what may change with a new version only: what a score depends on, and what ends its truth."""
        return json_digest([self.digest, self.min_items, sorted(self.superseded_by)])

    @model_validator(mode="after")
    def _check_items(self) -> Self:
        if len(self.items) < self.min_items:
            raise ValueError(f"expected at least {self.min_items} items (min_items), found {len(self.items)}")
        seen: dict[str, str] = {}
        for item in self.items:
            if problem := _item_problem(item, self.scorer):
                raise ValueError(f"item {item.id!r}: {problem}")
            content = json_digest(item.model_dump(mode="json", exclude={"id", "note"}))
            if item.id in seen:
                raise ValueError(f"item {item.id!r}: the id is used twice; ids must be unique")
            # Two reviewers may correct the same reply in the same words: both corrections are tested.
            if content in seen.values() and self.scorer != "preference":
                raise ValueError(f"item {item.id!r}: the same item is there twice under two ids; remove one")
            seen[item.id] = content
        return self


def load_suite(folder: Path) -> Suite:
    """Read and check a suite.

    Raises:
        SuiteError: a missing file, an unknown key (with the nearest name), a wrong value or item; the message names
            file and line.
    """
    head_path, items_path = folder / "suite.yaml", folder / "items.jsonl"
    head = _read_head(head_path)
    if head.get("name") != folder.name:
        raise SuiteError(f"{head_path}: expected name {folder.name!r} as the folder's, found {head.get('name')!r}.")
    lines = _read_items(items_path, str(head["scorer"]))
    try:
        return Suite.model_validate({**head, "items": [item for _, item in lines]})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        named = re.match(r"Value error, item '(.*)': ", problem["msg"])
        last = {item.id: number for number, item in lines}
        where = f"{items_path}:{last[named.group(1)]}" if named and named.group(1) in last else str(head_path)
        raise SuiteError(f"{where}: {place + ': ' if place else ''}{_plain(problem['msg'])}.") from error


def load_suites(root: Path, names: Sequence[str]) -> tuple[Suite, ...]:
    """The named suites below `root`, in the order of `names`.

    Raises:
        SuiteError: a name that is not there (with the nearest one), or a suite that is wrong.
    """
    if not root.is_dir():
        raise SuiteError(f"{root}: expected a folder of suites, found none. Give the folder that holds them.")
    known = sorted(path.name for path in root.iterdir() if path.is_dir())
    for name in names:
        if name not in known:
            raise SuiteError(
                f"expected a suite {name!r} in {root}, found none{_nearest(name, known)}. "
                f"There are: {', '.join(known) or 'no suites'}."
            )
    if len(set(names)) != len(names):
        raise SuiteError(f"expected each suite once, found {', '.join(names)}. Remove the repeated name.")
    return tuple(load_suite(root / name) for name in names)


def all_questions(root: Path) -> tuple[str, ...]:
    """What the suites below `root` ask, whether a recipe names them or not: a suite of tomorrow counts today.

    Raises:
        SuiteError: a suite that cannot be read, and so could not be kept out of training.
    """
    if not root.is_dir():
        return ()
    return suite_texts(load_suite(head.parent) for head in sorted(root.glob("*/suite.yaml")))


def all_passages(root: Path) -> tuple[str, ...]:
    """Everything else that the suites below `root` hold: earlier turns, accepted answers, choices, pairs."""
    if not root.is_dir():
        return ()
    items = (item for head in sorted(root.glob("*/suite.yaml")) for item in load_suite(head.parent).items)
    return tuple(dict.fromkeys(text for item in items for text in _passages(item)))


def _passages(item: Item) -> Iterator[str]:
    yield from (message.content for message in item.messages)
    yield from (*(item.accept or ()), *(item.choices or ()))
    yield from (text for text in (item.chosen, item.rejected) if text is not None)


def suite_texts(suites: Iterable[Suite]) -> tuple[str, ...]:
    """The last user text of every item, each once, in order: what training data must not contain."""
    return tuple(dict.fromkeys(last_user_text(item.messages) for suite in suites for item in suite.items))


def _read_head(path: Path) -> dict[str, Any]:
    head = parse_yaml(_read_text(path), str(path), SuiteError)
    if not isinstance(head, dict):
        raise SuiteError(f"{path}: expected keys and values, found {type(head).__name__}.")
    allowed = [name for name in Suite.model_fields if name != "items"]
    for key in head:
        if key not in allowed:
            raise SuiteError(f"{path}: unknown key {key!r}{_nearest(str(key), allowed)}.")
    if not isinstance(head.get("scorer"), str) or head["scorer"] not in _KEYS:
        near = _nearest(str(head.get("scorer")), _KEYS)
        raise SuiteError(
            f"{path}: expected scorer to be one of {', '.join(_KEYS)}, found {head.get('scorer')!r}{near}."
        )
    return head


def _read_items(path: Path, scorer: str) -> list[tuple[int, Item]]:
    """(line number, item) of each line; a line is what ends in a newline, blank ones are passed over."""
    items = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
            json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half a character cannot be asked
        except ValueError as error:
            raise SuiteError(f"{path}:{number}: not valid JSON ({error}).") from error
        if not isinstance(fields, dict):
            raise SuiteError(f"{path}:{number}: expected an object, found {type(fields).__name__}.")
        allowed = {"id", "messages", "note"} | _KEYS[scorer]
        for key in fields:
            if key not in allowed:
                raise SuiteError(f"{path}:{number}: unknown key {key!r} for scorer {scorer}{_nearest(key, allowed)}.")
        try:
            items.append((number, Item.model_validate(fields)))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise SuiteError(f"{path}:{number}: {place}: {_plain(problem['msg'])}.") from error
    return items


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(f"{path}: expected this file of the suite, found none. Add it or correct the path.") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}: expected UTF-8, found byte {error.start} that is not. Save it as UTF-8.") from error


def _item_problem(item: Item, scorer: str) -> str:
    """What is wrong with an item under its scorer; empty when nothing is."""
    given = {key for keys in _KEYS.values() for key in keys if getattr(item, key) is not None}
    if missing := _KEYS[scorer] - _OPTIONAL - given:
        return f"expected {', '.join(sorted(missing))} for scorer {scorer}, found none"
    if extra := given - _KEYS[scorer]:
        return f"{', '.join(sorted(extra))} has no meaning for scorer {scorer}; remove it"
    if item.messages[-1].role != "user":
        return f"expected the last message from the user, found {item.messages[-1].role}"
    if scorer == "choice":
        return _choice_problem(item.choices or (), item.answer)
    if scorer == "preference":
        chosen, rejected = (item.chosen or "").strip(), (item.rejected or "").strip()
        return "" if chosen and rejected and chosen != rejected else "expected two different, non-empty replies"
    return _text_problem(item, scorer)


def _choice_problem(choices: tuple[str, ...], answer: int | None) -> str:
    if len(choices) < 2 or len(set(choices)) != len(choices) or not all(text.strip() for text in choices):
        return "expected at least two different, non-empty choices"
    if answer is None or not 0 <= answer < len(choices):
        return f"expected answer between 0 and {len(choices) - 1}, found {answer}"
    return ""


def _text_problem(item: Item, scorer: str) -> str:
    """Try the item on its own terms: an accepted answer must score right."""
    score, distractors = TEXT_SCORERS[scorer], item.distractors or ()
    if not item.terms or not all(normalise(term) for term in (*item.terms, *distractors)):
        return "expected at least one accepted term, and no empty ones"
    if scorer == "regex":
        try:
            found = re.compile(item.terms[0], re.IGNORECASE)
        except re.error as error:
            return f"the pattern is not valid ({error})"
        if found.search(""):
            return "the pattern matches the empty answer"
        wrong = next((text for text in distractors if found.fullmatch(normalise(text))), None)
        return f"the distractor {wrong!r} is what the pattern asks for" if wrong else ""
    for term in item.terms:
        if not score(term, item.terms, distractors):
            return f"the accepted answer {term!r} itself scores wrong: a distractor stands in it, or it has no letters"
    return ""


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
