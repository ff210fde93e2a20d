"""What a recipe says about replay: which examples are kept, how many are seen again, and whose answers they carry.

    >>> ReplaySettings(ratio=0.25, minimum=0).wanted(12)
    4
    >>> ReplaySettings(policy="balanced", balance="topics").kept_by
    'topic_balanced'

Two choices are independent: `policy` says which rows stand in the buffer and which of them are drawn, `answers` says
what the drawn ones are answered with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from incremental_llm.dataset.examples import Kind

DEFAULT_CAPACITY: Mapping[Kind, int] = {"sft": 2000, "pair": 2000, "unpaired": 4000}

Count = Annotated[int, Field(ge=0)]
PolicyName = Literal[
    "reservoir_balanced", "topic_balanced", "reservoir", "prioritised", "window", "half_life", "self_synthesised"
]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)

_BALANCED: Mapping[str, PolicyName] = {"increments": "reservoir_balanced", "topics": "topic_balanced"}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PrioritySettings(_Settings):
    """policy prioritised: what an example's chance grows with, as production is measured on it."""

    by: Literal["loss", "flips"] = Field(
        "loss", description="loss: of production on the example; flips: answered right once and wrong now"
    )
    exponent: float = Field(0.6, ge=0, le=10, description="chance ~ (priority + 0.01) ** exponent; 0 is uniform")
    sample: int = Field(256, ge=1, description="kept rows of each kind that are measured a night, at random")


class SynthesisSettings(_Settings):
    """policy self_synthesised: how production writes the questions that it rehearses."""

    temperature: float = Field(1.0, gt=0, description="of sampling the questions; their answers are greedy")
    top_p: float = Field(0.9, gt=0, le=1, description="the most likely tokens with this probability are sampled from")
    prompt_tokens: int = Field(64, ge=1, description="a question that has not ended by then is left out")
    system: str | None = Field(None, description="system prompt before the questions; the template's own by default")


class ReplaySettings(_Settings):
    """How much is replayed, of what, and with whose answers.

    `ratio` is replay / (new + replay) of each kind; 0 turns replay off, whatever `minimum` says. `minimum` rows of a
    kind are replayed even where the ratio asks for fewer: 2 % of 16 examples protects nothing.
    """

    ratio: float = Field(default=0.25, ge=0, lt=1, description="replay / (new + replay) of each kind; 0 is off")
    minimum: int = Field(default=16, ge=0, description="rows of a kind replayed even where the ratio asks for fewer")
    rotate: bool = Field(
        default=True,
        description="every epoch over SFT examples or pairs rehearses old rows of its own, as far as the buffer holds "
        "them; false: the same ones",
    )
    capacity: dict[Kind, Count] = Field(
        default_factory=lambda: dict(DEFAULT_CAPACITY), description="rows of each kind that the buffer keeps"
    )
    capacity_tokens: dict[Kind, Count] = Field(
        default_factory=dict, description="tokens of each kind that the buffer keeps; a kind left out has no such bound"
    )
    max_increments: int | None = Field(None, ge=1, description="rows of more increments ago leave; null: none does")
    max_days: float | None = Field(
        None, gt=0, description="rows whose feedback is older than tonight's newest by more days leave; null: none does"
    )
    policy: Literal["balanced", "reservoir", "prioritised", "window", "half_life", "self_synthesised"] = Field(
        "balanced", description="which rows are kept and drawn"
    )
    balance: Literal["increments", "topics"] = Field("increments", description="policy balanced: equal shares of what")
    window: int = Field(7, ge=1, description="policy window: the last so many increments are kept")
    half_life: float = Field(7, gt=0, description="policy half_life: after so many increments a row's chance is half")
    priority: PrioritySettings = PrioritySettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    answers: Literal["stored", "on_policy"] = Field(
        "stored", description="on_policy: production answers replayed SFT rows anew where it says what is stored"
    )
    agreement: float = Field(
        80, ge=0, le=100, description="words in common (percent) from which production says what is stored"
    )
    answer_tokens: int = Field(128, ge=1, description="an answer that production has not ended by then is not used")

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        problems = []
        if self.balance == "topics" and self.policy != "balanced":
            problems.append(f"balance: topics needs policy: balanced, found policy: {self.policy}; change one")
        if self.answers == "on_policy" and self.policy == "self_synthesised":
            problems.append(
                "answers: on_policy has no effect beside policy: self_synthesised, whose answers are production's own; "
                "leave answers: stored"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def kept_by(self) -> PolicyName:
        """The policy's name in a stored buffer and in `policies.POLICIES`."""
        return _BALANCED[self.balance] if self.policy == "balanced" else self.policy

    @property
    def reads_events(self) -> bool:
        """Whether it asks for more of an old example than its texts: the topic or the time of its events."""
        return self.balance == "topics" or self.max_days is not None

    def wanted(self, new: int) -> int:
        """Old rows of a kind wanted beside `new` new ones, an epoch: max(minimum, ceil(new * ratio / (1 - ratio)))."""
        if self.ratio == 0:
            return 0
        return max(self.minimum, math.ceil(round(new * self.ratio / (1 - self.ratio), 9)))
