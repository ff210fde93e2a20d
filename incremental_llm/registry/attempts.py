"""Rejected attempts, and the policy that no night repeats a failed one for ever. Pure; no database.

The policy: after a batch's first rejection its events stay, and are tried once more when new feedback has come; events
that were part of two rejected attempts are quarantined. An attempt is counted by its key, so a run that was
interrupted and resumed counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from incremental_llm.chat import json_digest

TRIES = 2
"""How often an event may be part of a rejected attempt before it is quarantined."""


class Attempt(BaseModel):
    """A candidate that the gate refused. `seqs` are the events it was trained on, `id` its `attempt_key`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    time: AwareDatetime
    parent: int
    seqs: tuple[int, ...] = Field(min_length=1)
    recipe: str | None = None
    seed: int = 0
    status: Literal["rejected"] = "rejected"
    reason: str
    stack_digest: str | None = None
    decision: str | None = None
    report: str | None = None
    dataset: str | None = None
    adapter: str | None = None

    @property
    def first_seq(self) -> int:
        """The oldest event of the batch."""
        return min(self.seqs)

    @property
    def last_seq(self) -> int:
        """The newest event of the batch."""
        return max(self.seqs)

    @property
    def objects(self) -> tuple[str, ...]:
        """Digests of the objects that the record refers to; `adapter` only when it was kept."""
        named = (self.decision, self.report, self.dataset, self.recipe, self.adapter)
        return tuple(digest for digest in named if digest is not None)


class Quarantined(BaseModel):
    """An event that no increment may use again: why, and which attempt or rollback version decided it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    reason: str
    attempt: str | None = None
    version: int | None = None
    time: AwareDatetime


def attempt_key(seqs: Iterable[int], recipe: str | None, parent: int, seed: int) -> str:
    """Digest of what makes two runs the same attempt: batch, recipe, parent version and seed."""
    return json_digest({"seqs": sorted(set(seqs)), "recipe": recipe, "parent": parent, "seed": seed})


def to_quarantine(attempts: Iterable[Attempt], tries: int = TRIES) -> dict[int, str]:
    """Events that used up their tries: seq -> id of the attempt (in the order given) that was the last one."""
    rejected: Counter[int] = Counter()
    spent: dict[int, str] = {}
    counted: set[str] = set()
    for attempt in attempts:
        if attempt.id in counted:
            continue
        counted.add(attempt.id)
        for seq in sorted(set(attempt.seqs)):
            rejected[seq] += 1
            if rejected[seq] == tries:
                spent[seq] = attempt.id
    return spent


def has_new_feedback(seqs: Collection[int], attempts: Iterable[Attempt]) -> bool:
    """Whether a batch holds an event that no attempt has seen: without one, a retry would repeat a failed night."""
    tried = {seq for attempt in attempts for seq in attempt.seqs}
    return any(seq not in tried for seq in seqs)
