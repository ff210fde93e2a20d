"""A stranger's text in a message of ours: short, and without a character that a terminal would act on."""

from __future__ import annotations

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def quoted(value: Any) -> str:
    """`value` as a literal in printable ASCII, cut in the middle where it is long.

    >>> quoted("a\\x1b[2J")
    "'a\\\\x1b[2J'"
    """
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode("ascii")
