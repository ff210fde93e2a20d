"""Seeded items: replies of which the verdict is known, mixed in to see who looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from incremental_llm.chat import Message
from incremental_llm.errors import InputError
from incremental_llm.feedback.review.items import Kind, Proposal, Voice
from incremental_llm.strict_json import read_json


class Seed(BaseModel):
    """A line of a seed file. What is not prompt, reply and expected is shown as that of any other item."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: str | tuple[Message, ...]
    reply: str
    expected: Literal["accept", "reject", "correct"]
    kind: Kind = "moderation"
    reason: str = "uncertain"
    voices: tuple[Voice, ...] = ()
    priority: float = Field(0.5, ge=0, le=1)

    def proposal(self) -> Proposal:
        """The item; a prompt that is text is one question of a user."""
        told: dict[str, Any] = self.model_dump()
        if isinstance(self.prompt, str):
            told["prompt"] = [{"role": "user", "content": self.prompt}]
        return Proposal.model_validate(told)


def read_seeds(path: Path) -> list[Proposal]:
    """The items of a JSONL file; all of them or none.

    Raises:
        InputError: a file that cannot be read, or a line that is no seed; the message has its number.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: expected a file of seeded items, found none ({error.strerror}).") from error
    seeds = [_seed(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not seeds:
        raise InputError(f"{path}: expected at least one seeded item, found an empty file.")
    return [seed.proposal() for seed in seeds]


def _seed(path: Path, number: int, line: bytes) -> Seed:
    try:
        return Seed.model_validate(read_json(line))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    except ValueError as error:
        why = str(error)
    example = '{"prompt": "How long?", "reply": "For ever.", "expected": "reject"}'
    raise InputError(f"{path} line {number}: expected an object such as {example}, found {why}. Nothing was taken in.")
