"""Doing what the plan says: the record first, files and objects, rows, and the event store last."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from incremental_llm.config import RunConfig
from incremental_llm.erase.plan import SCRATCH, ErasurePlan, Source, plan_erasure
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.erasure import Erased, Needles, compact, erase_rows, pseudonyms
from incremental_llm.registry import Erasure, Registry
from incremental_llm.registry.objects import Failpoint, ObjectStore, no_failpoint

Progress = Callable[[str, int, int, float | None], None]

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class ErasureReport:
    """What was done, and what is left to others.

    `rows` are changed rows of the feedback database by table, `objects` the objects that gave way to others, `removed`
    the files and folders that are gone or were rewritten. `left` are files of the workspace in which his name or words
    still stand, such as in somebody else's feedback or in an operator's note; `outside` are those that are not ours.
    `unsure` is what may be his and was left.
    """

    record: Erasure
    rows: Mapping[str, int]
    objects: int
    removed: int
    left: tuple[Path, ...]
    unsure: tuple[str, ...]
    outside: tuple[Source, ...]
    rebuild: tuple[int, ...]
    advice: str


def erase_person(
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    person: str,
    also: Collection[str] = (),
    progress: Progress = lambda what, done, total, loss: None,
    failpoint: Failpoint = no_failpoint,
) -> ErasureReport:
    """Erase a user or reviewer; the caller holds the workspace. Interrupted, the same call goes on.

    Raises:
        InputError: as `plan_erasure` does; nothing was changed.
        IncrementalError: a step failed; the record stays pending until the same call has ended.
    """
    progress("looking for what is to be erased", 0, 1, None)
    plan = plan_erasure(registry, store, config, person, also)  # refuses before anything is changed
    if pseudonyms(store) != plan.redaction.renames.pseudonyms:  # the first erasure of a database makes its key
        plan = plan_erasure(registry, store, config, person, also)
    erasing, record = registry.erasing(), _record(plan)
    erasing.record(record)
    erasing.go_on()
    failpoint("record pending")
    _files(plan, progress, failpoint)
    objects = _objects(plan, registry, record, config.workspace / SCRATCH, progress, failpoint)
    erasing.rename(person, plan.found.events, plan.redaction.renames)
    failpoint("registry rows")
    erasing.compact()
    failpoint("registry compacted")
    rows = erase_rows(store, _erased(plan, record))  # from here on nobody can say any more what was his
    failpoint("store rows")
    advice = compact(store)
    failpoint("store compacted")
    done = record.model_copy(update={"status": "erased", "finished": datetime.now(UTC)})
    erasing.record(done)
    failpoint("record erased")
    progress("searching for what is left", 0, 1, None)
    return ErasureReport(
        record=done,
        rows=rows,
        objects=objects,
        removed=len(plan.files),
        left=tuple(_left(config.workspace, plan.needles)),
        unsure=plan.unsure,
        outside=plan.outside,
        rebuild=plan.rebuild,
        advice=advice,
    )


def _record(plan: ErasurePlan) -> Erasure:
    """The record of a new erasure, or of the one that goes on: what an interrupted call has seen still counts."""
    before = plan.pending
    return Erasure(
        id=before.id if before else uuid.uuid4().hex[:12],
        person=plan.redaction.renames.pseudonyms.of(plan.person),
        begun=before.begun if before else datetime.now(UTC),
        events=max(len(plan.found.events), before.events if before else 0),
        increments=tuple(sorted({*plan.increments, *(before.increments if before else ())})),
        versions=tuple(sorted({*plan.versions, *(before.versions if before else ())})),
        adapters=tuple(sorted({*plan.adapters, *(before.adapters if before else ())})),
    )


def _files(plan: ErasurePlan, progress: Progress, failpoint: Failpoint) -> None:
    for number, step in enumerate(plan.files):
        progress(f"erasing in {step.path.name}", number, len(plan.files), None)
        step.do()
        failpoint(f"file {step.path.parent.name}/{step.path.name}")


def _objects(
    plan: ErasurePlan, registry: Registry, record: Erasure, scratch: Path, progress: Progress, failpoint: Failpoint
) -> int:
    """Objects give way to others without him; adapters of refused attempts, which serve nobody, give way to nothing."""
    objects, erasing = ObjectStore(registry.objects), registry.erasing()
    for number, one in enumerate(plan.objects):
        progress(f"replacing a {one.kind}", number, len(plan.objects), None)
        erasing.replace(one.digest, one.write(objects), record.id)
        failpoint(f"object {one.kind}")
    serving = {adapter for snapshot in registry.list() for adapter in snapshot.stack.adapters}
    for adapter in sorted(set(record.adapters) - serving):
        if adapter in objects:
            erasing.replace(adapter, None, record.id)
            failpoint("object adapter")
    for digest in plan.discarded:
        objects.discard(digest)
    shutil.rmtree(scratch, ignore_errors=True)
    return len(plan.objects)


def _erased(plan: ErasurePlan, record: Erasure) -> Erased:
    return Erased(
        erasure=record.id,
        person=plan.person,
        events=plan.found.events,
        naming=plan.found.naming,
        needles=plan.needles,
        pseudonyms=plan.redaction.renames.pseudonyms,
    )


def _left(workspace: Path, needles: Needles) -> Iterator[Path]:
    """Files of the workspace in which something of his still stands; weights hold no text to find."""
    for path in sorted(workspace.rglob("*")):
        if path.is_file() and path.suffix != _WEIGHTS and needles.in_file(path):
            yield path
