"""The registry: which stack is in production, how it came there, and the way back.

    create, open                        one folder: registry.db and objects/
    put_object, put_json                content first, immutable, under its digest
    commit_increment                    a candidate that passed becomes the next version and production, in one step
    record_attempt                      one that did not gets no version; refused twice, its events are quarantined
    tag, alias                          other names: a tag never moves, an alias serves nobody
    du, gc                              bytes by kind and version; letting go of what nothing refers to
    promote, rollback                   move production; a rollback is a new version and quarantines what it undid
    head, get, list, refs, history      read
    adapters_that_saw, sightings        who and what is in which adapter
    find_examples, examples_from        examples by id and by event
    erasing, erasures, erased_parts     erasing a person, who was, and what of which version is gone
    repair                              objects from another copy, by digest; nothing is invented
    verify                              every promise checked, problems in words

    >>> import tempfile
    >>> from pathlib import Path
    >>> from incremental_llm.adapters.stack import BaseRef, Stack
    >>> work = tempfile.TemporaryDirectory()
    >>> base = Stack(base=BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32))
    >>> registry = Registry.create(Path(work.name) / "registry", base)
    >>> registry.head().version
    0

    A night: store the adapter and the gate's decision, then commit both by digest.

    >>> adapter = Path(work.name) / "adapter"
    >>> adapter.mkdir()
    >>> _ = (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    >>> stack = base.plus(registry.put_object(adapter))
    >>> decision = registry.put_json({"passed": True, "stack_digest": stack.digest, "reasons": []})
    >>> registry.commit_increment(parent=0, stack=stack, cursor=120, decision=decision).version
    1
    >>> registry.refs()
    {'production': 1}

    The same from a job that started when production was still 0:

    >>> from incremental_llm.errors import PreconditionFailed
    >>> try:
    ...     registry.commit_increment(parent=0, stack=stack, cursor=120, decision=decision)
    ... except PreconditionFailed as error:
    ...     print(error)
    expected production to be version 0, found version 1: another job moved it. Nothing was changed: ...

    >>> registry.rollback(0, "answers became rude").version
    2
    >>> len(registry.quarantined()), registry.head().cursor
    (120, 0)
    >>> registry.verify()
    []
    >>> registry.close(); work.cleanup()

The one design fact: a commit is data, typed updates with preconditions, judged by pure functions (`updates`) under the
database's write lock. "Failed" (`CommitError`, nothing changed) is another error than "unknown" (`CommitStateUnknown`).
"""

from __future__ import annotations

from incremental_llm.registry.ancestry import Node
from incremental_llm.registry.attempts import Attempt, Quarantined, attempt_key, has_new_feedback, to_quarantine
from incremental_llm.registry.compare import Comparison
from incremental_llm.registry.erasure import Erasing, Erasure, Seen
from incremental_llm.registry.examples import ExampleSighting
from incremental_llm.registry.invariants import Problem
from incremental_llm.registry.lineage import (
    AdapterSighting,
    Sighting,
    adapters_holding,
    consumed,
    event_uses,
    given_back,
    increments_in,
    undone,
    versions_holding,
)
from incremental_llm.registry.queries import RefMove
from incremental_llm.registry.repair import Repair
from incremental_llm.registry.retention import GRACE, Collected
from incremental_llm.registry.snapshot import Snapshot, SnapshotDiff, diff
from incremental_llm.registry.store import PRODUCTION, Registry
from incremental_llm.registry.summaries import SnapshotSummary
from incremental_llm.registry.updates import EventUse
from incremental_llm.registry.usage import Usage

__all__ = [
    "GRACE",
    "PRODUCTION",
    "AdapterSighting",
    "Attempt",
    "Collected",
    "Comparison",
    "Erasing",
    "Erasure",
    "EventUse",
    "ExampleSighting",
    "Node",
    "Problem",
    "Quarantined",
    "RefMove",
    "Registry",
    "Repair",
    "Seen",
    "Sighting",
    "Snapshot",
    "SnapshotDiff",
    "SnapshotSummary",
    "Usage",
    "adapters_holding",
    "attempt_key",
    "consumed",
    "diff",
    "event_uses",
    "given_back",
    "has_new_feedback",
    "increments_in",
    "to_quarantine",
    "undone",
    "versions_holding",
]
