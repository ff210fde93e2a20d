"""How each table of the feedback database lets go of a person, and the one transaction in which all do.

A table without a rule stops an erasure before it begins: what nobody has thought about would be left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from incremental_llm.errors import IncrementalError, InputError
from incremental_llm.feedback.erasure.needles import Needles
from incremental_llm.feedback.pseudonyms import Pseudonyms
from incremental_llm.feedback.tables import links_of

if TYPE_CHECKING:
    from incremental_llm.feedback.store import FeedbackStore

_PREFIX = "feedback_"


@dataclass(frozen=True)
class Erased:
    """Who and what is erased: `events` are ids, `needles` find what no id leads to, `erasure` is the record's id."""

    erasure: str
    person: str
    events: frozenset[str]
    naming: frozenset[str]
    needles: Needles
    pseudonyms: Pseudonyms

    def is_named_by(self, body: Mapping[str, Any]) -> bool:
        """Whether a field of a JSON object is exactly the person, or one of his events."""
        links = links_of(body, every=True)
        named = {
            body.get("id") if isinstance(body.get("id"), str) else None,
            *(to for kind, to in links if kind == "event"),
        }
        return ("person", self.person) in links or not self.events.isdisjoint(named)


@dataclass(frozen=True)
class TableRule:
    """`erase` lets go of a person in `tables`, within the caller's transaction, and returns how many rows it changed.

    It does nothing the second time. Tables that hold nothing of anybody have a rule that does nothing.
    """

    tables: tuple[str, ...]
    erase: Callable[[sa.Connection, Erased], int]


def every_rule() -> tuple[TableRule, ...]:
    """The rules of all parts of the package that keep tables in the feedback database."""
    from incremental_llm.feedback.api.erasure import RULES as API_RULES
    from incremental_llm.feedback.erasure.events import RULES
    from incremental_llm.feedback.review.erasure import RULES as REVIEW_RULES

    return (*RULES, *API_RULES, *REVIEW_RULES)


def check_rules(store: FeedbackStore, rules: Collection[TableRule] | None = None) -> None:
    """Raises InputError where the database has a table of this package's that no rule names."""
    known = {name for rule in (every_rule() if rules is None else rules) for name in rule.tables}
    with store.reading() as connection:
        there = sa.inspect(connection).get_table_names()
    unknown = sorted(name for name in there if name.startswith(_PREFIX) and name not in known)
    if unknown:
        raise InputError(
            f"erase: expected a rule for every table of the feedback database, found none for {', '.join(unknown)}. "
            "It was made by a newer version of this program: erase with that one. Nothing was changed."
        )


def erase_rows(store: FeedbackStore, erased: Erased) -> Mapping[str, int]:
    """Apply every rule in one transaction; changed rows by the first table of each rule, where there were any."""
    with store.writing() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete=ON").close()
        return _applied(connection, erased)


def rows_to_change(store: FeedbackStore, erased: Erased) -> Mapping[str, int]:
    """What `erase_rows` would return: the rules are applied and taken back, so that a plan cannot say otherwise."""
    with contextlib.suppress(_TakenBack), store.writing() as connection:
        changed = _applied(connection, erased)
        raise _TakenBack
    return changed


class _TakenBack(Exception):
    """Ends a transaction without a commit."""


def _applied(connection: sa.Connection, erased: Erased) -> dict[str, int]:
    there = set(sa.inspect(connection).get_table_names())
    rules = [rule for rule in every_rule() if there.issuperset(rule.tables)]
    changed = {rule.tables[0]: rule.erase(connection, erased) for rule in rules}
    return {table: count for table, count in changed.items() if count}


def compact(store: FeedbackStore) -> str:
    """Rewrite the database without what was deleted from it; in words, what is left to the operator ("" for nothing).

    Raises:
        IncrementalError: another program is reading, so that the log of SQLite cannot be cut.
    """
    with store.reading() as connection:
        if connection.dialect.name != "sqlite":
            return (
                "PostgreSQL keeps the old rows in its files until VACUUM FULL has rewritten them, and in its "
                "write-ahead log, archives and backups until these have gone: run VACUUM FULL on the feedback_ tables"
            )
    compact_sqlite(store.reading())
    return ""


def compact_sqlite(connection: sa.Connection) -> None:
    """VACUUM, and empty the write-ahead log; closes the connection.

    Raises:
        IncrementalError: another program is reading.
    """
    with connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.isolation_level = None  # VACUUM runs in no transaction
        raw.execute("VACUUM").close()
        busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise IncrementalError(
            f"{connection.engine.url}: expected no other program to read the database, found one, and its log could "
            "not be emptied. Stop what reads it, such as a server, and give the same command again: it continues."
        )
