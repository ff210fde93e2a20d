"""Why a line was refused, without what the reason quotes of the line."""

from __future__ import annotations

import re

_QUOTED = re.compile(r",? found\b|['\"(]")
_CUT = " [what was found is erased]"


def without_quotes(reason: str) -> str:
    """The reason up to what it found, which may be anybody's words.

    >>> without_quotes("value: expected 1 or -1, found 'call me at 555'")
    'value: expected 1 or -1 [what was found is erased]'
    >>> without_quotes("reply: missing")
    'reply: missing'
    """
    if reason.endswith(_CUT):
        return reason
    match = _QUOTED.search(reason)
    return reason if match is None else reason[: match.start()].rstrip(" ,:;") + _CUT
