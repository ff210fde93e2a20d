"""What an import did, whatever it read: each row was taken, known already, blank, or refused with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from incremental_llm.feedback.store import AppendReport, FeedbackStore

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
    `whole` is false where the file holds more that could not be read; the last refusal says why. `absent` are columns
    that the mapping names and that no record had. `taken_before`: of the resumed rows, some gave an event.
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
    whole: bool = True
    absent: tuple[str, ...] = ()
    taken_before: bool = False

    @property
    def all_refused(self) -> bool:
        """Whether the file holds rows, and not one of them gave an event."""
        return bool(self.refused) and not self.taken and not self.taken_before


@dataclass
class Totals:
    """What was read in one call of an import, and what the store said to it."""

    rows: int = 0
    taken: int = 0
    blank: int = 0
    added: int = 0
    duplicates: int = 0

    def add(self, rows: int, blank: int, numbers: Sequence[int], stored: AppendReport) -> None:
        """A batch that was stored; `numbers` are the rows of its events."""
        self.rows += rows
        self.blank += blank
        self.taken += len(set(numbers) - {numbers[one.position] for one in stored.refused})
        self.added += stored.added
        self.duplicates += stored.duplicates

    def report(self, store: FeedbackStore, refused: Iterable[tuple[int, str]]) -> ImportReport:
        """What to say of it, with every (row, reason) refused in the file."""
        return ImportReport(
            rows=self.rows,
            taken=self.taken,
            added=self.added,
            duplicates=self.duplicates,
            waiting=store.waiting_count(),
            unknown_types={},
            refused=tuple(RefusedRow(row, reason) for row, reason in refused),
            blank=self.blank,
        )
