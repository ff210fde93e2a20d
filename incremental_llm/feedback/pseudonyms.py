"""What stands in the place of an erased name: a keyed hash, so that nobody without the key can try names on it."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.events import Event, UnknownEvent

if TYPE_CHECKING:
    from incremental_llm.feedback.store import FeedbackStore

ERASED = "erased"
"""The type of a tombstone."""

_PREFIX = "erased-"
_DIGITS = 32
_CLEAR = 8  # characters
_BEFORE, _AFTER = r"(?:(?<=['\"/])|(?<=: )|(?<=, ))", r"(?=['\"]|,|;|\.?$|\.\s| and \d+ more)"


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """HMAC-SHA256 under the database's own key, cut to 128 bits: equal names have equal pseudonyms."""

    key: bytes = field(repr=False)

    def of(self, name: str) -> str:
        """The pseudonym of an event id, a user, a reviewer, or a digest."""
        return _PREFIX + hmac.digest(self.key, name.encode("utf-8", "surrogatepass"), "sha256").hex()[:_DIGITS]


@dataclass(frozen=True)
class Renames:
    """The names of a person and of his events, and their pseudonyms."""

    names: Collection[str]
    pseudonyms: Pseudonyms

    def name(self, value: str) -> str:
        """The pseudonym of a name that is erased; any other one as it is."""
        return self.pseudonyms.of(value) if value in self.names else value

    def text(self, value: str) -> str:
        """A text of ours with pseudonyms where a name stands in quotes or is one of a list (`lost: k1, k2 and 3 more`).

        Elsewhere a name is renamed as a whole word if it can be no other one: 8 characters or more, and neither a plain
        word nor a number. `60 items` stays, whoever is called 60.
        """
        return self._spans.sub(lambda match: self.pseudonyms.of(match[0]), value)

    @cached_property
    def _spans(self) -> re.Pattern[str]:
        if not self.names:
            return re.compile("(?!)")
        clear = [name for name in self.names if len(name) >= _CLEAR and not name.isalpha() and not name.isdecimal()]
        found = rf"{_BEFORE}(?:{_either(self.names)}){_AFTER}"
        return re.compile(found + (rf"|(?<![\w-])(?:{_either(clear)})(?![\w-])" if clear else ""))


def _either(names: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def read_pseudonyms(connection: sa.Connection) -> Pseudonyms | None:
    """The database's pseudonyms; None where nobody was ever erased from it."""
    key = connection.execute(sa.select(tables.erasure_keys.c.key)).scalar()
    return None if key is None else Pseudonyms(bytes.fromhex(key))


def pseudonyms(store: FeedbackStore) -> Pseudonyms:
    """The database's pseudonyms; the first call makes their key."""
    with store.writing() as connection:
        found = read_pseudonyms(connection)
        if found is None:
            found = Pseudonyms(secrets.token_bytes(32))
            connection.execute(sa.insert(tables.erasure_keys).values(id=1, key=found.key.hex()))
    return found


def is_tombstone(event: Event) -> bool:
    """Whether this is what an erased event has left."""
    return isinstance(event, UnknownEvent) and event.type == ERASED
