"""One record of a file, as every reader gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_FIELD = 64 * 1024 * 1024
"""Longest line or CSV field, in bytes or characters."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its number from 1 on, and its `data`, or else the `reason` why it could not be read.

    `ends`: the file holds more, which cannot be read after it.
    """

    number: int
    data: dict[str, Any] | None
    reason: str = ""
    ends: bool = False
