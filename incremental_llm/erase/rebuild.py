"""The nights from the first that read an erased person on are made again without him, and take production's place.

    line = version before the first of them
    for each night since: its events without him, its own recipe, its own gate -> a version on the line
    the last of them against production: no suite and no correction may be worse -> production

The one design fact: the line is a ref that serves nobody, and its nights are ordinary increments. A night that fails
its gate on the line leaves its events to the next one, as it does in production; what is left over is pending again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from incremental_llm.base_models import ResolvedBase
from incremental_llm.config import RunConfig
from incremental_llm.erase.files import file_steps
from incremental_llm.erase.objects import replacements
from incremental_llm.erase.plan import SCRATCH
from incremental_llm.erase.redaction import Redaction
from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.pseudonyms import Pseudonyms, Renames
from incremental_llm.gate import Decision
from incremental_llm.pipeline import Progress
from incremental_llm.registry import Erasure, Registry, Snapshot, consumed, increments_in
from incremental_llm.registry.objects import ObjectStore
from incremental_llm.remaking import Remaking

LINE = "rebuild"


@dataclass(frozen=True)
class RebuildReport:
    """`made` maps each night that was made again to its version on the line, `left_out` the others to the reason.

    `decision` is the last one, of the whole line against production, None where production needed no other; `version`
    is what serves now, None where the line was refused. `purged` adapters are gone from the disk.
    """

    made: dict[int, int] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    decision: Decision | None = None
    version: int | None = None
    purged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rebuilding:
    """What a rebuild works on; `train` is as for `pipeline.judge_increment`."""

    registry: Registry
    store: FeedbackStore
    config: RunConfig
    base: ResolvedBase
    train: Callable[..., Any]
    progress: Progress

    def run(self) -> RebuildReport:
        """Make again what production stands on from the first night on that read somebody who was erased.

        Interrupted, the same call goes on.

        Raises:
            InputError: an erasure that has not ended, or none that waits for this.
            IncrementalError: a night failed for another reason than its gate; production is untouched.
        """
        erasures = self._due()
        head, tainted = self.registry.head(), {adapter for one in erasures for adapter in one.adapters}
        snapshots = self.registry.list()
        nights = nights_to_rebuild(snapshots, head, tainted)
        if not nights:
            purged = self._purge(erasures, head.version)
            return RebuildReport(version=head.version, purged=purged)
        self._begin(snapshots, head, nights[0], erasures)
        made, left_out = self._line.nights(snapshots, nights)
        last = self.registry.head(LINE)
        decision = self._line.judged(head, last)
        if not decision.passed:
            return RebuildReport(made, left_out, decision)
        reason = f"made again without whom erasure {', '.join(one.id for one in erasures)} concerns"
        self.registry.promote(last.version, expected=head.version, reason=reason)
        return RebuildReport(made, left_out, decision, last.version, self._purge(erasures, last.version))

    def _due(self) -> list[Erasure]:
        erasures = self.registry.erasures()
        if pending := [one.id for one in erasures if one.status == "pending"]:
            raise InputError(
                f"rebuild: expected every erasure to have ended, found {', '.join(pending)} interrupted. Give the same "
                "illm feedback erase again first."
            )
        due = [one for one in erasures if one.status == "erased"]
        if not due:
            raise InputError("rebuild: expected an erasure that waits for it, found none. See illm feedback erase.")
        return due

    def _begin(self, snapshots: Sequence[Snapshot], head: Snapshot, first: int, erasures: Sequence[Erasure]) -> None:
        """Put the line where it starts, unless an interrupted call has begun the same one."""
        start = snapshots[first].parent
        assert start is not None
        ids = ", ".join(one.id for one in erasures)
        why = f"from {start}, for production {head.version} without whom erasure {ids} concerns"
        self._line.begin(start, why)

    @property
    def _line(self) -> Remaking:
        return Remaking(self.registry, self.store, self.config, self.base, self.train, self.progress, LINE)

    def _purge(self, erasures: Sequence[Erasure], version: int) -> tuple[str, ...]:
        """Remove the adapters that saw them, and what these have answered since.

        Raises:
            InputError: a ref still serves such an adapter.
        """
        adapters = {adapter for one in erasures for adapter in one.adapters}
        snapshots = self.registry.list()
        for ref, at in self.registry.refs().items():
            if ref != LINE and not adapters.isdisjoint(snapshots[at].stack.adapters):
                raise InputError(
                    f"rebuild: expected no ref on a version that saw whom was erased, found {ref} on {at}. Production "
                    f"is version {version} now; move {ref} there, then give the same command again to remove the "
                    "weights."
                )
        purged = tuple(sorted(self._purged(snapshots, adapters, erasures)))
        for one in erasures:
            self.registry.erasing().record(one.model_copy(update={"status": "rebuilt", "rebuilt": version}))
        self.registry.erasing().compact()
        return purged

    def _purged(self, snapshots: Sequence[Snapshot], adapters: set[str], erasures: Sequence[Erasure]) -> Iterator[str]:
        objects, erasing = ObjectStore(self.registry.objects), self.registry.erasing()
        erasing.go_on()
        tainted = frozenset(s.stack.digest for s in snapshots if not adapters.isdisjoint(s.stack.adapters))
        nobody = Redaction("", frozenset(), tainted, Renames((), Pseudonyms(b"")))
        stacks = {s.stack.digest for s in snapshots} | {a.stack_digest or "" for a in self.registry.attempts()}
        for step in file_steps(self.config.workspace, nobody, stacks):
            step.do()
        for one in tuple(replacements(objects, nobody, self.config.workspace / SCRATCH)):
            erasing.replace(one.digest, one.write(objects), erasures[-1].id)
        for erasure in erasures:
            for adapter in erasure.adapters:
                if adapter in objects:
                    erasing.replace(adapter, None, erasure.id)
                    yield adapter


def nights_to_rebuild(snapshots: Sequence[Snapshot], head: Snapshot, tainted: set[str]) -> tuple[int, ...]:
    """The increments that production stands on, from the first whose stack holds a tainted adapter; in their order.

    A consolidation has read nothing, and is none: what is made again is a stack, which can be consolidated anew.
    """
    if tainted.isdisjoint(head.stack.adapters):
        return ()
    standing = sorted(increments_in(snapshots, head.version))
    first = next(version for version in standing if not tainted.isdisjoint(snapshots[version].stack.adapters))
    return tuple(version for version in standing if version >= first and consumed(snapshots, version))
