"""What an import did, whatever it read: each row was taken, known already, blank, or refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in the file) after every batch."""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row, or a part of one, that did not become an event: its number from 1 on, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What one import did.

    `rows` were read now (the lines of JSONL, the records of anything else), `resumed` rows before them by an earlier
    import of the same file. Of those read now `taken` gave events and `blank` are empty. Of their events `added` are
    new and `duplicates` were stored already. `waiting` is how many events the store holds that wait for their
    interaction. `unknown_types` counts the events read now that are kept but not understood. `refused` names every
    refusal in the file, those of earlier imports included; a row that holds several things may be taken in part.
    """

    rows: int
    taken: int
    added: int
    duplicates: int
    waiting: int
    unknown_types: dict[str, int]
    refused: tuple[RefusedRow, ...]
    blank: int = 0
    resumed: int = 0
