"""Seeded items: replies of which the verdict is known, mixed in to see who looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import choice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from incremental_llm.chat import Message
from incremental_llm.errors import InputError
from incremental_llm.feedback.review.flags import sure, urgency
from incremental_llm.feedback.review.items import Item, Kind, Proposal, Voice
from incremental_llm.strict_json import read_json


class Seed(BaseModel):
    """A line of a seed file. What it leaves out of reason, voices and priority is as in an item of its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: str | tuple[Message, ...]
    reply: str
    expected: Literal["accept", "reject", "correct"]
    kind: Kind = "moderation"
    reason: str = "uncertain"
    voices: tuple[Voice, ...] = ()
    priority: float = Field(0.5, ge=0, le=1)

    def proposal(
        self, like: Sequence[Item] = (), choose: Callable[[Sequence[Proposal]], Proposal] = choice
    ) -> Proposal:
        """The item; a prompt that is text is one question of a user.

        Without voices it gets those of one of `like`, with its reason and priority, unless somebody wrote a text there,
        which would fit no other question. Where there is none, a moderator says the reason.
        """
        told: dict[str, Any] = self.model_dump()
        if isinstance(self.prompt, str):
            told["prompt"] = [{"role": "user", "content": self.prompt}]
        if not self.voices:
            fitting = [item.proposal for item in like if self._fits(item.proposal)]
            drawn = choose(fitting).model_dump(include={"reason", "voices", "priority"}) if fitting else {}
            says = sure("moderator", self.reason, urgency(self.kind, self.priority))
            told |= {"voices": (says,)} | drawn
        return Proposal.model_validate(told)

    def _fits(self, real: Proposal) -> bool:
        given = self.model_fields_set
        alike = real.kind == self.kind and real.expected is None and real.other is None
        same = ("reason" not in given or real.reason == self.reason) and (
            "priority" not in given or real.priority == self.priority
        )
        return alike and same and bool(real.voices) and not any(voice.text for voice in real.voices)


def read_seeds(path: Path, like: Sequence[Item] = ()) -> list[Proposal]:
    """The items of a JSONL file, which look like those in `like`; all of them or none.

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
    return [seed.proposal(like) for seed in seeds]


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
