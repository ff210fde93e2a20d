"""A search for somebody's names and words in bytes, in each way in which this package or a database writes text."""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SHORTEST_NAME = 8
"""Characters of a name that, as a word of a text, can hardly be anything else."""
SHORTEST_ALSO = 6
"""Characters of another string by which a person is known."""

_SHORTEST_TEXT = 24  # characters: what is shorter, many say
_MOST_TEXTS = 300
_BLOCK = 16 * 1024 * 1024
_STRIDE = 8  # bytes from one window to the next


@dataclass(frozen=True)
class Needles:
    """What to search for: `name` and `also` as whole words, `texts` wherever they stand, in upper or lower case.

    Of very many texts the 300 longest are searched for, and none below 24 characters. `also` are other strings by
    which the person is known, such as an e-mail address.
    """

    name: str
    texts: Collection[str] = ()
    also: Collection[str] = ()

    def his(self, data: bytes) -> bool:
        """Whether `data` holds what nobody else writes by chance: a long text of his, or one of `also`."""
        lower = data.lower()
        return self._also.found(lower) or self._texts.found(lower)

    def named(self, data: bytes) -> bool:
        """Whether the name is a word of `data`, letter by letter; never where it is short, and may be any word."""
        return len(self.name) >= SHORTEST_NAME and self._exact_name.found(data)

    def in_bytes(self, data: bytes) -> bool:
        """Whether any of them is in `data`, which may be somebody else's use of the same word."""
        lower = data.lower()
        return self._name.found(lower) or self._also.found(lower) or self._texts.found(lower)

    def in_file(self, path: Path) -> bool:
        """Whether any of them is in a file; read a block at a time."""
        overlap = 1 + max(self._name.longest, self._also.longest, self._texts.longest)
        tail = b""
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                if self.in_bytes(tail + block):
                    return True
                tail = block[-overlap:]
        return False

    @cached_property
    def _name(self) -> _Words:
        return _Words(set(_folded(self.name)))

    @cached_property
    def _exact_name(self) -> _Words:
        return _Words(_forms(self.name))

    @cached_property
    def _also(self) -> _Words:
        return _Words({form for text in self.also for form in _folded(text)})

    @cached_property
    def _texts(self) -> _Texts:
        long = sorted({text for text in self.texts if len(text) >= _SHORTEST_TEXT}, key=len, reverse=True)
        return _Texts({form for text in long[:_MOST_TEXTS] for form in _folded(text)})


class _Words:
    """Short strings, found where they are whole words."""

    def __init__(self, forms: Collection[bytes]) -> None:
        self._forms = sorted(filter(None, forms), key=len, reverse=True)
        self.longest = len(self._forms[0]) if self._forms else 0
        self._pattern = re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, self._forms)) + rb")(?![\w-])")

    def found(self, data: bytes) -> bool:
        """Whether one of them is a word of `data`."""
        # A plain search is some fifty times as fast as the pattern, and mostly enough.
        return any(form in data for form in self._forms) and self._pattern.search(data) is not None


class _Texts:
    """Many long strings, found in one pass, of which `data` is read in windows of 16 bytes, one every 8 bytes.

    Wherever a string of 23 bytes or more stands, one of its first eight windows is a window of the data. Shorter
    windows are in any text of the same language.
    """

    def __init__(self, forms: Collection[bytes]) -> None:
        import numpy as np

        self.longest = max(map(len, forms), default=0)
        self._at: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
        for form in forms:
            for shift in range(_STRIDE):
                (window,) = _windows(form[shift : shift + 2 * _STRIDE])
                self._at[int(window)].append((form, shift))
        self._keys = np.array(list(self._at), np.uint64)
        self._maybe = np.zeros(1 << 16, bool)
        self._maybe[self._keys >> np.uint64(48)] = True

    def found(self, data: bytes) -> bool:
        """Whether one of them is in `data`."""
        import numpy as np

        if not self._at:
            return False
        windows = _windows(data)
        likely = np.flatnonzero(self._maybe[windows >> np.uint64(48)])
        likely = likely[np.isin(windows[likely], self._keys)]
        return any(
            place * _STRIDE >= shift and data.startswith(form, place * _STRIDE - shift)
            for place in likely.tolist()
            for form, shift in self._at[int(windows[place])]
        )


def _windows(data: bytes) -> Any:
    """A hash of 64 bits of every 16 bytes that begin at a multiple of 8; the factors are odd and have no pattern."""
    import numpy as np

    words = np.frombuffer(data, np.uint64, len(data) // _STRIDE)
    return words[:-1] * np.uint64(0x9E3779B97F4A7C15) ^ words[1:] * np.uint64(0xC2B2AE3D27D4EB4F)


def _folded(text: str) -> Iterator[bytes]:
    """Every form of a text for a search in bytes in lower case, where only ASCII letters are."""
    for cased in {text, text.lower(), text.upper(), text.casefold()}:
        yield from (form.lower() for form in _forms(cased))


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
