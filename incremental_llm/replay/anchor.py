"""The general anchor: everyday prompts that its teacher, the previous policy or the base, answers itself.

Training adds KL(teacher || new) over those answers, which is what keeps general ability; replay of old tasks does
not. Only the prompts are kept here: answers and their log-probabilities belong to a policy and are made per increment.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from incremental_llm.chat import Conversation, Message
from incremental_llm.errors import InputError

PACKAGED = "everyday.jsonl"


def anchor_prompts(path: Path | None = None) -> tuple[Conversation, ...]:
    """The prompts of the package, or those of `path` instead: one `{"id", "messages"}` a line, ending with the user.

    Raises:
        InputError: no such file, no prompts, or a line that is not one; the message names file and line.
    """
    if path is None:
        source = resources.files("incremental_llm.replay") / PACKAGED
        return _parsed(source.read_text(encoding="utf-8"), PACKAGED)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: expected a JSONL file of anchor prompts, found no readable file ({error.strerror}). "
            "Check the path, or leave it out to use the prompts that come with the package."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, found other bytes ({error}). Save the file as UTF-8.") from error
    return _parsed(text, str(path))


def _parsed(text: str, name: str) -> tuple[Conversation, ...]:
    prompts: dict[str, Conversation] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is legal inside JSON strings
        if not line.strip():
            continue
        key, conversation = _prompt(line, f"{name}:{number}")
        if key in prompts:
            raise InputError(f"{name}:{number}: expected a new id, found {key!r} again. Give each prompt its own id.")
        prompts[key] = conversation
    if not prompts:
        raise InputError(f"{name}: expected anchor prompts, found none. Add lines of the form {_EXAMPLE}")
    return tuple(prompts.values())


_EXAMPLE = '{"id": "a1", "messages": [{"role": "user", "content": "..."}]}'


def _prompt(line: str, where: str) -> tuple[str, Conversation]:
    try:
        entry: Any = json.loads(line)
        if not isinstance(entry, dict) or set(entry) != {"id", "messages"} or not isinstance(entry["id"], str):
            raise ValueError('not an object with exactly "id" and "messages"')
        conversation = tuple(Message.model_validate(message) for message in entry["messages"])
        if not conversation or conversation[-1].role != "user" or not conversation[-1].content.strip():
            raise ValueError("the last message is not something the user says")
    except (ValueError, TypeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{where}: expected {_EXAMPLE}, found a line that is not ({reason}). Fix the line.") from error
    return entry["id"], conversation
