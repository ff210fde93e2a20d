"""The snapshot: one committed, consistent world, and a link of a hash chain. No torch, no database."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from incremental_llm.adapters.stack import Stack
from incremental_llm.chat import canonical_json
from incremental_llm.errors import IntegrityError

Kind = Literal["init", "increment", "rollback"]


class Snapshot(BaseModel):
    """What one version is made of; every digest but `attempt` and the hashes names an object of the registry.

    `parent` is the version that the ref was on before; a rollback also has `restores`, the version whose stack, replay
    buffer, corrections and cursor it carries again. `cursor` is the seq of the last feedback event consumed.
    `attempt` is the key of the run that made it. `hash` covers every other field, `previous_hash` is the hash of the
    version before, so no version can be changed or removed unnoticed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=0)
    parent: int | None = None
    kind: Kind
    time: AwareDatetime
    stack: Stack
    replay: str | None = None
    corrections: str | None = None
    cursor: int = Field(default=0, ge=0)
    dataset: str | None = None
    report: str | None = None
    decision: str | None = None
    recipe: str | None = None
    attempt: str | None = None
    restores: int | None = None
    note: str = ""
    previous_hash: str | None = None
    hash: str = ""

    @classmethod
    def sealed(cls, **fields: Any) -> Snapshot:
        """A snapshot of these fields with its hash."""
        draft = cls(**fields)
        return draft.model_copy(update={"hash": body_hash(draft.body)})

    @classmethod
    def after(cls, previous: Snapshot, **fields: Any) -> Snapshot:
        """The next version: dense number, chained to `previous`."""
        return cls.sealed(version=previous.version + 1, previous_hash=previous.hash, **fields)

    @classmethod
    def from_body(cls, body: str, expected_hash: str) -> Snapshot:
        """Read what `body` wrote.

        Raises:
            IntegrityError: the text does not have the hash that was stored beside it.
        """
        found = body_hash(body)
        if found != expected_hash:
            raise IntegrityError(
                f"snapshot: expected hash {expected_hash[:12]}, found {found[:12]}. "
                "Its row was changed after the commit: restore the registry's database from a copy."
            )
        return cls.model_validate({**json.loads(body), "hash": expected_hash})

    @property
    def body(self) -> str:
        """Canonical JSON of all fields but `hash`: what is stored and what the hash covers."""
        return canonical_json(self.model_dump(mode="json", exclude={"hash"}))

    @property
    def objects(self) -> tuple[str, ...]:
        """Digests of all objects this version needs, adapters first."""
        others = (self.replay, self.corrections, self.dataset, self.report, self.decision, self.recipe)
        return (*self.stack.adapters, *(digest for digest in others if digest is not None))


class SnapshotDiff(BaseModel):
    """What changed between two snapshots."""

    model_config = ConfigDict(frozen=True)

    before: int
    after: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    events: int
    changed: tuple[str, ...]


def diff(before: Snapshot, after: Snapshot) -> SnapshotDiff:
    """Adapters added and removed, events consumed between the cursors (negative: given back), and changed parts."""
    parts = ("replay", "corrections", "dataset", "report", "decision", "recipe")
    return SnapshotDiff(
        before=before.version,
        after=after.version,
        added=tuple(a for a in after.stack.adapters if a not in before.stack.adapters),
        removed=tuple(a for a in before.stack.adapters if a not in after.stack.adapters),
        events=after.cursor - before.cursor,
        changed=tuple(part for part in parts if getattr(before, part) != getattr(after, part)),
    )


def body_hash(body: str) -> str:
    """sha256 of a snapshot's canonical text; the same as `json_digest` of its fields."""
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
