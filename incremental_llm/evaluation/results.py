"""What an evaluation found: every item's outcome, never a bare average. No torch.

The one design fact: a score is recomputed from the items whenever a result is made or read, so a file that was edited,
cut off or averaged differently cannot be loaded, and an item without an outcome stays visible as `unscored`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError
from incremental_llm.evaluation.intervals import wilson

CONFIDENCE = 0.95  # of the interval in every cell


class ItemResult(BaseModel):
    """One item's outcome; `correct` is None when it could not be measured, and `note` then says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    answer: str
    correct: bool | None
    note: str = ""


class SuiteResult(BaseModel):
    """A suite measured on one stack.

    `score` is the share of the `n` scored items that are right (0 to 1), `low` and `high` its Wilson interval at 95 %;
    all three are None when nothing was scored. `unscored` items are in none of them, and block the gate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    version: int
    digest: str
    items: tuple[ItemResult, ...]
    score: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int

    @classmethod
    def of(cls, suite: str, version: int, digest: str, items: Sequence[ItemResult]) -> Self:
        """The result of these outcomes."""
        score, low, high, n, unscored = _figures(items)
        return cls(
            suite=suite,
            version=version,
            digest=digest,
            items=tuple(items),
            score=score,
            low=low,
            high=high,
            n=n,
            unscored=unscored,
        )

    @property
    def outcomes(self) -> dict[str, float]:
        """1.0 or 0.0 for each scored item, by id."""
        return {item.id: float(item.correct) for item in self.items if item.correct is not None}

    def problems(self) -> tuple[str, ...]:
        """Why this result is not what its items say; empty when it is.

        A result that was validated has none; one that was built without validation may.
        """
        found = (self.score, self.low, self.high, self.n, self.unscored)
        wrong = [
            f"{name} is {value}, its items say {true}"
            for name, value, true in zip(
                ("score", "low", "high", "n", "unscored"), found, _figures(self.items), strict=True
            )
            if not _same(value, true)
        ]
        repeated = [name for name, count in Counter(item.id for item in self.items).items() if count > 1]
        return (*wrong, *(f"item {name!r} is there twice" for name in repeated))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        return self


class EvaluationReport(BaseModel):
    """Suites measured on exactly one stack, with the seconds it took and the tokens generated and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stack_digest: str
    suites: dict[str, SuiteResult]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, result in self.suites.items():
            if name != result.suite:
                raise ValueError(f"the result under {name!r} is of suite {result.suite!r}")
        return self

    @property
    def digest(self) -> str:
        return json_digest(self.model_dump(mode="json"))

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a report back.

        Raises:
            IntegrityError: not a report, or one whose figures are not those of its items.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the report"
            raise IntegrityError(
                f"expected an evaluation report, found a problem in {place}: {problem['msg']}. Measure the stack again."
            ) from error


def _figures(items: Sequence[ItemResult]) -> tuple[float | None, float | None, float | None, int, int]:
    """score, low, high, n, unscored."""
    outcomes = [item.correct for item in items if item.correct is not None]
    n, unscored = len(outcomes), len(items) - len(outcomes)
    if not n:
        return None, None, None, 0, unscored
    low, high = wilson(sum(outcomes), n, CONFIDENCE)
    return sum(outcomes) / n, low, high, n, unscored


def _same(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=0, abs_tol=1e-9)
