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
        """A text of ours in which names stand as whole words, with their pseudonyms instead."""
        return self._words.sub(lambda match: self.pseudonyms.of(match[0]), value)

    @cached_property
    def _words(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile(
            rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])" if self.names else "(?!)"
        )


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
