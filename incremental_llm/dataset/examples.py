"""What training reads: three kinds of example, each with the events and users it came from."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.chat import Message, json_digest
from incremental_llm.feedback.serving import Serving

Kind = Literal["sft", "pair", "unpaired"]
KINDS: tuple[Kind, ...] = ("sft", "pair", "unpaired")


class _Example(BaseModel):
    """`weight` multiplies the example's loss (1 is one plain example, 0 none); `sources` are event ids, those of
    interactions and of feedback; `users` are those who gave the feedback, not those whose question it was.
    `serving` says how its interactions were served, as far as that was logged, in the order of `sources`; `implicit`
    that nobody said it: it was read from what users did, and gives way to whatever anybody says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[Message, ...]
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    sources: tuple[str, ...]
    users: tuple[str, ...]
    serving: tuple[Serving, ...] = Field((), exclude_if=operator.not_)
    implicit: bool = Field(False, exclude_if=operator.not_)

    @property
    def id(self) -> str:
        """Digest of kind and content: equal for equal texts, whoever gave them and whatever they weigh."""
        return json_digest(self.model_dump(mode="json", exclude={"weight", "sources", "users", "serving", "implicit"}))


class SftExample(_Example):
    """`completion` is the right reply to `prompt`."""

    kind: Literal["sft"] = "sft"
    completion: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.completion,)


class PairExample(_Example):
    """`chosen` is a better reply to `prompt` than `rejected`."""

    kind: Literal["pair"] = "pair"
    chosen: str
    rejected: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)


class UnpairedExample(_Example):
    """`completion` is a reply to `prompt` that is wanted, or is not."""

    kind: Literal["unpaired"] = "unpaired"
    completion: str
    desirable: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.completion,)


Example = SftExample | PairExample | UnpairedExample


class _AnyExample(BaseModel):
    example: Annotated[Example, Field(discriminator="kind")]


def parse_example(data: dict[str, Any]) -> Example:
    """The example that `model_dump(mode="json")` gave; pydantic's ValidationError for anything else."""
    return _AnyExample.model_validate({"example": data}).example
