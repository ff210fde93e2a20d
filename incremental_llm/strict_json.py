"""JSON as it is written, read strictly: a key that stands twice is an error, and so is what JSON does not know."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse_json(text: str) -> Any:
    """Plain data.

    Raises:
        json.JSONDecodeError: no JSON.
        ValueError: an object that holds a key twice, NaN or an infinity, or JSON nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        count = Counter(name for name, _ in pairs)
        twice = next(name for name, times in count.items() if times > 1)
        raise ValueError(f"the key {twice!r} twice; remove one of the two")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")
