"""The tasks of a continual-learning benchmark: files of rows, chats made of them, and a score.

A folder holds <task>.train.jsonl, <task>.dev.jsonl and <task>.test.jsonl; a line has `id`, `instruction`, `input` and
`output`. Any such folder will do, whatever its tasks are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.adapters.chat_tokens import completion_ids
from incremental_llm.adapters.load import DTYPES, load_stack
from incremental_llm.chat import Message, json_digest
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import InputError
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.evaluation.scorers import exact

PARTS = ("train", "dev", "test")
ANSWER_CUE = "\n\nAnswer:"  # a completion model's cue at the end of an input: a chat has its own


@dataclass(frozen=True)
class Task:
    """A task's rows as examples; `max_new_tokens` is what its longest answer and the end of the turn need."""

    name: str
    train: tuple[SftExample, ...]
    dev: tuple[SftExample, ...]
    test: tuple[SftExample, ...]
    max_new_tokens: int

    @property
    def digest(self) -> str:
        parts = [[example.id for example in part] for part in (self.train, self.dev, self.test)]
        return json_digest([self.name, *parts])

    def training_rows(self, count: int, seed: int) -> list[SftExample]:
        """`count` rows to train on, or all if there are fewer: other ones for another seed."""
        rng = random.Random(f"{self.name}:{seed}")
        return rng.sample(self.train, min(count, len(self.train)))


def read_tasks(folder: Path, names: Sequence[str], tokenizer: Any, input_tokens: int | None) -> dict[str, Task]:
    """The named tasks; inputs are cut after `input_tokens` tokens, if that is a number.

    Raises:
        InputError: a file that is missing or empty, a line that is no row, or a row of train or dev that test has too.
    """
    return {name: _read_task(folder, name, tokenizer, input_tokens) for name in names}


def _read_task(folder: Path, name: str, tokenizer: Any, input_tokens: int | None) -> Task:
    parts = {part: _read_part(folder / f"{name}.{part}.jsonl", tokenizer, input_tokens) for part in PARTS}
    asked = {example.prompt for example in parts["test"]}
    shared = sum(example.prompt in asked for part in ("train", "dev") for example in parts[part])
    if shared:
        raise InputError(
            f"{folder}: {shared} questions of {name} are in train or dev and in test. Drop them from train and dev, or "
            "cut inputs later if they begin alike."
        )
    answers = {example.completion: example for part in PARTS for example in parts[part]}
    longest = max(len(completion_ids(tokenizer, e.prompt, answer)) for answer, e in answers.items())
    return Task(name, parts["train"], parts["dev"], parts["test"], longest)


def _read_part(path: Path, tokenizer: Any, input_tokens: int | None) -> tuple[SftExample, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: expected a task's rows, found no readable file ({error.strerror}).") from error
    rows = [_example(line, f"{path}:{n}", tokenizer, input_tokens) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: expected rows, found none.")
    return tuple(rows)


def _example(line: str, where: str, tokenizer: Any, input_tokens: int | None) -> SftExample:
    try:
        row = json.loads(line)
        instruction, text, answer = (str(row[key]).strip() for key in ("instruction", "input", "output"))
        source = str(row.get("id", where))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: expected an object with instruction, input and output ({error!r}).") from error
    text = _cut(tokenizer, text.removesuffix(ANSWER_CUE.strip()).strip(), input_tokens)
    prompt = (Message(role="user", content=f"{instruction}\n{text}"),)
    return SftExample(prompt=prompt, completion=answer, sources=(source,), users=("benchmark",))


def _cut(tokenizer: Any, text: str, tokens: int | None) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if tokens is None or len(ids) <= tokens else tokenizer.decode(ids[:tokens]).strip()


def outcomes(
    base_folder: Path,
    adapter_folders: Sequence[Path],
    dtype: str,
    tokenizer: Any,
    tasks: Sequence[Task],
    part: str,
    rows: int,
) -> dict[str, list[int]]:
    """1 or 0 for each of the first `rows` rows of each task: whether the stack's greedy answer is the right one.

    Answers are compared as the suites' `exact` does: case, spaces, quotes and the full stop aside.
    """
    model = load_stack(base_folder, adapter_folders, dtype=DTYPES[dtype])
    found = {}
    for task in tasks:
        asked = getattr(task, part)[:rows]
        answers = greedy_answers(model, tokenizer, [e.prompt for e in asked], max_new_tokens=task.max_new_tokens)
        found[task.name] = [int(exact(a, (e.completion,))) for a, e in zip(answers, asked, strict=True)]
    return found
