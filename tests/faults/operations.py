"""What faults are injected into: an entry for each operation that writes. A new one is a function and a line here."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from incremental_llm.artifacts import MANIFEST, verify_folder, write_manifest
from incremental_llm.erase import erase_person
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.registry import Registry, schema
from incremental_llm.registry.objects import Failpoint, no_failpoint

from .world import BASE, HIS, PERSON, fingerprint, night, open_registry, open_store, recipe_of

Breaches = list[str]


def nothing(root: Path) -> None:
    """For operations that need no preparation."""


def no_breach(root: Path) -> Breaches:
    """For operations that promise nothing beside the registry's own."""
    return []


@dataclass(frozen=True)
class Operation:
    """One thing that writes, and what its user does when it was interrupted.

    `prepare` brings the copied workspace to where it starts. `resume` is what is done after a kill, before the promises
    are checked: where it is the operation itself, a state between is allowed until then. `pending` is the subject of
    problems that `verify` may name until then. `promise` is checked at the end.
    """

    run: Callable[[Path, Failpoint], None]
    prepare: Callable[[Path], None] = nothing
    resume: Callable[[Path], None] = nothing
    pending: str = ""
    promise: Callable[[Path], Breaches] = no_breach
    needs: str = ""

    def load(self) -> None:
        """Import what takes long, before anything is measured or forked."""
        if self.needs:
            importlib.import_module(self.needs)


def commit(root: Path, failpoint: Failpoint) -> None:
    """A night: adapter and decision into the store, one transaction that adds a version and moves production."""
    with open_registry(root, failpoint) as registry:
        night(registry, 3, root / "made", replay=registry.put_json(["replay"]))


def promote(root: Path, failpoint: Failpoint) -> None:
    with open_registry(root, failpoint) as registry:
        registry.promote(1, expected=2, reason="back to the first")


def rollback(root: Path, failpoint: Failpoint) -> None:
    with open_registry(root, failpoint) as registry:
        registry.rollback(1, "answers became rude")


def refuse(root: Path, failpoint: Failpoint) -> None:
    """The second refusal of a batch, which quarantines it."""
    with open_registry(root, failpoint) as registry:
        decision = registry.put_json({"passed": False, "reasons": ["worse again"]})
        registry.record_attempt(parent=2, seqs=[13, 14, 15], seed=1, reason="worse again", decision=decision)


def create(root: Path, failpoint: Failpoint) -> None:
    """A second registry; one that a kill left unfinished is made again."""
    if not Registry.exists(root / "second"):
        Registry.create(root / "second", BASE, failpoint=failpoint).close()


def _created(root: Path) -> Breaches:
    with Registry.open(root / "second") as registry:
        return [str(problem) for problem in registry.verify()]


def erase(root: Path, failpoint: Failpoint) -> None:
    """A person, from files, objects, rows and the log."""
    with open_registry(root, failpoint) as registry, open_store(root) as store:
        try:
            erase_person(registry, store, recipe_of(root), PERSON)
        except InputError as error:
            if "which has ended" not in str(error):
                raise


def _nothing_of_his(root: Path) -> Breaches:
    files = fingerprint(root)
    return [
        f"{name} still holds what was erased"
        for name, content in files.items()
        if any(word.encode() in content.lower() for word in (HIS, PERSON))
    ]


_FORMAT_1 = {"registry", "snapshots", "refs", "ref_moves", "attempts", "quarantine", "suites", "event_uses"}


def to_format_1(root: Path) -> None:
    """Take away what later formats added."""
    with open_registry(root) as registry, schema.writing(registry._engine) as connection, connection.begin():
        for table in reversed(schema.metadata.sorted_tables):
            if table.name not in _FORMAT_1:
                table.drop(connection)
        connection.execute(text("UPDATE registry SET value = '1' WHERE key = 'format'"))


def upgrade(root: Path, failpoint: Failpoint) -> None:
    open_registry(root, failpoint).close()


def _examples_are_there(root: Path) -> Breaches:
    with open_registry(root) as registry:
        return [] if registry.find_examples("") else ["no example was found again"]


_CHECKPOINT = {"adapter_model.safetensors": 3000, "optimizer.pt": 9000, "trainer_state.json": 500}


def checkpoint(root: Path, failpoint: Failpoint) -> None:
    """A Trainer's checkpoint: written in place, file by file, and then sealed."""
    folder = root / "training" / "checkpoint-2"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in _CHECKPOINT.items():
        (folder / name).write_bytes(b"2" * size)
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder)
    failpoint("sealed")


def _first_checkpoint(root: Path) -> None:
    folder = root / "training" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"1" * 3000)
    write_manifest(folder)


def _a_checkpoint_is_whole(root: Path) -> Breaches:
    """There always is one to go on from: one that is not what its manifest says is passed over."""
    for folder in (root / "training").iterdir():
        with contextlib.suppress(IntegrityError):
            verify_folder(folder)
            return []
    return ["no checkpoint is left to go on from"]


OPERATIONS: dict[str, Operation] = {
    "commit": Operation(commit),
    "promote": Operation(promote),
    "rollback": Operation(rollback),
    "refuse": Operation(refuse),
    "create": Operation(create, resume=lambda root: create(root, no_failpoint), promise=_created),
    "erase": Operation(
        erase, resume=lambda root: erase(root, no_failpoint), pending="erasure ", promise=_nothing_of_his
    ),
    "upgrade": Operation(upgrade, prepare=to_format_1, promise=_examples_are_there),
    "checkpoint": Operation(checkpoint, prepare=_first_checkpoint, promise=_a_checkpoint_is_whole),
}
