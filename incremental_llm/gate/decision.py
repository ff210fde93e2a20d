"""The gate's verdict as a record: every check with its numbers, the reasons in words, the items that decided."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError

Kind = Literal["input", "new", "old", "corrections", "flips", "unguarded"]

COLUMNS = ("suite", "guard", "before", "after", "difference", "interval", "items", "verdict")


class Check(BaseModel):
    """One rule applied to one suite (`name`), or to the whole input.

    `passed` is None for a suite that is reported without being guarded. Numbers are shares of 1, None where the rule
    has none: `before`, `after`, their `difference` with `low` and `high`, and the `bound` it was held against;
    `detectable` is the smallest difference that so many items show with probability 0.8. `lost` holds up to ten ids of
    items that were right before and are wrong now, `lost_total` their number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    passed: bool | None
    reason: str
    before: float | None = None
    after: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    bound: float | None = None
    detectable: float | None = None
    lost: tuple[str, ...] = ()
    lost_total: int = 0


class Decision(BaseModel):
    """Whether exactly the stack `stack_digest` may take the place of exactly `production_digest`, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    stack_digest: str
    production_digest: str
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    negative_flips: tuple[str, ...]
    policy_digest: str

    @property
    def digest(self) -> str:
        return json_digest(self.model_dump(mode="json"))

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stopped the candidate."""
        return tuple(check for check in self.checks if check.passed is False)

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text under COLUMNS, shares as points of 100; the input's own checks only when they failed."""
        return [_row(check) for check in self.checks if check.kind != "input" or check.passed is False]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a decision back.

        Raises:
            IntegrityError: not a decision, or one that says it passed beside a check that failed.
        """
        try:
            decision = cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise IntegrityError(
                f"expected a gate decision, found a problem: {problem['msg']}. Decide again."
            ) from error
        if decision.passed and (decision.failed or not decision.checks):
            raise IntegrityError("expected a passed decision to have only passed checks, found others. Decide again.")
        return decision


def _row(check: Check) -> tuple[str, ...]:
    interval = "" if check.low is None or check.high is None else f"{100 * check.low:+.1f} to {100 * check.high:+.1f}"
    return (
        check.name,
        check.kind,
        _points(check.before),
        _points(check.after),
        "" if check.difference is None else f"{100 * check.difference:+.1f}",
        interval,
        "" if check.n is None else str(check.n),
        {True: "passed", False: "failed", None: "not guarded"}[check.passed],
    )


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
