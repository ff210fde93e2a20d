"""A search for somebody's names and words in bytes, in each way in which this package or a database writes text."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_SHORTEST_TEXT = 24  # characters: what is shorter, many say
_MOST_TEXTS = 300
_BLOCK = 16 * 1024 * 1024


@dataclass(frozen=True)
class Needles:
    """What to search for: `names` as whole words, `texts` wherever they stand.

    Of very many texts the 300 longest are searched for, and none below 24 characters.
    """

    names: Collection[str]
    texts: Collection[str] = ()

    def in_bytes(self, data: bytes) -> bool:
        """Whether any of them is in `data`."""
        return bool(self._names.search(data)) or any(text in data for text in self._texts)

    def in_file(self, path: Path) -> bool:
        """Whether any of them is in a file; read a block at a time."""
        overlap, tail = self._longest, b""
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                if self.in_bytes(tail + block):
                    return True
                tail = block[-overlap:]
        return False

    @cached_property
    def _names(self) -> re.Pattern[bytes]:
        forms = sorted({form for name in self.names if name for form in _forms(name)}, key=len, reverse=True)
        if not forms:
            return re.compile(rb"(?!)")
        return re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, forms)) + rb")(?![\w-])")

    @cached_property
    def _texts(self) -> tuple[bytes, ...]:
        long = sorted({text for text in self.texts if len(text) >= _SHORTEST_TEXT}, key=len, reverse=True)
        return tuple(dict.fromkeys(form for text in long[:_MOST_TEXTS] for form in _forms(text)))

    @cached_property
    def _longest(self) -> int:
        forms: Iterable[bytes] = (*self._texts, *(form for name in self.names for form in _forms(name)))
        return max(map(len, forms), default=0) + 1


def _forms(text: str) -> set[bytes]:
    """UTF-8 as it is, inside JSON (with and without escapes of what is not ASCII), inside HTML, and as repr cuts it."""
    ways = (
        text,
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        html.escape(text),
        text.encode("ascii", "backslashreplace").decode(),
    )
    return {way.encode("utf-8", "surrogatepass") for way in ways}
