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


def read_json(raw: bytes) -> Any:
    """Plain data from the bytes of one value.

    Raises:
        ValueError: not UTF-8, or as for `parse_json`; its text says what was expected and what was found.
    """
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise ValueError(f"expected UTF-8, found {found}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, found an error at position {error.pos + 1}: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"expected JSON, found {error}") from None


def deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` deep; a level at a time, so no stack can run out."""
    level = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(depth):
        level = [item for box in level for item in (box.values() if isinstance(box, dict) else box)]
        level = [item for item in level if isinstance(item, dict | list | tuple)]
        if not level:
            return False
    return bool(level)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        count = Counter(name for name, _ in pairs)
        twice = next(name for name, times in count.items() if times > 1)
        raise ValueError(f"the key {twice!r} twice; remove one of the two")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")
