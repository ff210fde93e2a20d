"""What the queue takes from outside, checked before the database, which takes neither NUL nor half a pair."""

from __future__ import annotations

import re

from incremental_llm.feedback.events import MAX_ID
from incremental_llm.feedback.review.items import VERDICTS, ReviewError, UnknownItemError

_ITEM = re.compile(r"[0-9a-f]{32}")


def is_item(name: str) -> bool:
    """Whether there could be an item with this id."""
    return _ITEM.fullmatch(name) is not None


def check_item(name: str) -> None:
    """Raises UnknownItemError for what is the id of no item."""
    if not is_item(name):
        raise unknown_item(name)


def unknown_item(name: str) -> UnknownItemError:
    """The error for an id that is none."""
    return UnknownItemError("the id of a review item", repr(name[:MAX_ID]), "illm review list shows them.")


def check_reviewer(reviewer: str) -> None:
    """Raises ReviewError for a name that is none, or that could be taken for another's: "anna " is not "anna"."""
    if not 0 < len(reviewer) <= MAX_ID or not reviewer.isprintable() or reviewer != reviewer.strip():
        expected = f"a reviewer of 1 to {MAX_ID} printable characters without spaces around"
        raise ReviewError(expected, repr(reviewer[:50]), "Give a name.")


def check_verdict(verdict: str, content: str | None) -> None:
    """Raises ReviewError for a verdict that is none, or a text that it does not go with."""
    if verdict not in VERDICTS:
        raise ReviewError(f"a verdict out of {', '.join(VERDICTS)}", repr(verdict)[:50], "Correct it.")
    if verdict != "correct" and content is not None:
        raise ReviewError(f"no text with {verdict}", "one", "Send it as correct, or leave it out.")
    if verdict == "correct" and (content is None or not content.strip()):
        raise ReviewError("the right reply with correct", "none", "Write it, or reject the reply.")
    try:
        (content or "").encode()
    except UnicodeEncodeError:
        raise ReviewError("text in valid Unicode", "half of a surrogate pair", "Correct the text.") from None
