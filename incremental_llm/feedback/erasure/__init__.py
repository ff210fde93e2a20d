"""Erasing a person from the feedback database: what is his, what stands in its place, and what each table does.

    found = belongings(store, "u1")                   his events, and those about his interactions
    erase_rows(store, Erased(erasure="e1", ...))      one transaction over every table of the database
    compact(store)                                    no byte of it is left in the file or its log

An event leaves a tombstone in its place of the sequence, under a pseudonym: a keyed hash, by which the same event is
known and refused when it comes again. A table that another part of the package keeps joins with a `TableRule`.
"""

from __future__ import annotations

from incremental_llm.feedback.erasure.belongings import Belongings, belongings
from incremental_llm.feedback.erasure.needles import SHORTEST_ALSO, Needles
from incremental_llm.feedback.erasure.reasons import without_quotes
from incremental_llm.feedback.erasure.rules import (
    Erased,
    TableRule,
    check_rules,
    compact,
    compact_sqlite,
    erase_rows,
    rows_to_change,
)
from incremental_llm.feedback.erasure.strays import doubtful, mentioned
from incremental_llm.feedback.pseudonyms import ERASED, Pseudonyms, is_tombstone, pseudonyms

__all__ = [
    "ERASED",
    "SHORTEST_ALSO",
    "Belongings",
    "Erased",
    "Needles",
    "Pseudonyms",
    "TableRule",
    "belongings",
    "check_rules",
    "compact",
    "compact_sqlite",
    "doubtful",
    "erase_rows",
    "is_tombstone",
    "mentioned",
    "pseudonyms",
    "rows_to_change",
    "without_quotes",
]
