"""The one shape of an error: what was expected, what was found, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

LONGEST = 500
"""Characters of `found`: a body with a thousand wrong fields is answered with its first ones."""


class Problem(Exception):
    """A request that is refused, with the status and the headers of its answer."""

    def __init__(
        self, status: int, expected: str, found: str, do: str, headers: Mapping[str, str] | None = None
    ) -> None:
        shown = found if len(found) <= LONGEST else found[: LONGEST - 3] + "..."
        super().__init__(f"expected {expected}, found {shown}")
        self.status, self.expected, self.found, self.do = status, expected, shown, do
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON of the answer."""
        told = ErrorDetail(
            status=self.status, expected=self.expected, found=self.found, do=self.do, request_id=request_id
        )
        return ErrorAnswer(error=told).model_dump()


class ErrorDetail(BaseModel):
    """Why a request was refused; `request_id` finds it in the server's log."""

    status: int
    expected: str
    found: str
    do: str
    request_id: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


def later(seconds: float) -> dict[str, str]:
    """The header that says when to come back."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def unavailable(expected: str, found: str, seconds: float = 1) -> Problem:
    """503: nothing is wrong with the request."""
    do = "Send it again after Retry-After, with the same id or Idempotency-Key; nothing is stored twice."
    return Problem(503, expected, found, do, later(seconds))
