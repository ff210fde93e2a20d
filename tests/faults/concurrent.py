"""Processes that write and read at once: what each of them does, and what their histories must agree on.

    committer, promoter, reader         roles of children of the worker; each writes what it did to a file of its own
    lost_or_doubled, not_linearizable   what is wrong with the histories

Times are of `time.monotonic_ns`, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from safetensors.numpy import load_file

from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.errors import PreconditionFailed
from incremental_llm.registry import RefMove, Registry, Snapshot

from .corruption import everything
from .world import BASE, adapter, open_registry, passing


@dataclass(frozen=True)
class Step:
    """One call: when it began and ended, its name, and the version it met or made; None when it was refused."""

    began: int
    ended: int
    name: str
    version: int | None


def commit_many(root: Path, worker: int, count: int) -> None:
    """`count` increments, each in the place of the adapter before; one that comes too late is decided again."""
    steps = []
    with open_registry(root) as registry:
        for number in range(count):
            made = adapter(root / f"made-{worker}-{number}", worker * 1000 + number)
            stack = BASE.plus(registry.put_object(made))
            decision, name, began = passing(registry, stack), f"{worker}:{number}", time.monotonic_ns()
            while True:
                head = registry.head()
                try:
                    snapshot = registry.commit_increment(
                        parent=head.version,
                        stack=stack,
                        cursor=head.cursor + 1,
                        decision=decision,
                        attempt=name,
                        replaces=len(head.stack.adapters),
                    )
                except PreconditionFailed:
                    continue
                break
            steps.append(Step(began, time.monotonic_ns(), name, snapshot.version))
    _write(root, f"commits-{worker}", steps)


def promote_many(root: Path, worker: int, count: int) -> None:
    """`count` compare-and-swaps of production, each to a version drawn in turn; a refused one is kept as such."""
    steps = []
    with open_registry(root) as registry:
        newest = len(registry.list()) - 1
        for number in range(count):
            expected, name = registry.head().version, f"{worker}:{number}"
            target = (expected + 1 + worker) % (newest + 1)
            began, done = time.monotonic_ns(), None
            with contextlib.suppress(PreconditionFailed):
                done = registry.promote(target, expected=expected, reason=name).version
            steps.append(Step(began, time.monotonic_ns(), f"{name}:{expected}", done))
    _write(root, f"promotions-{worker}", steps)


def read_until(root: Path, worker: int, count: int) -> None:
    """Read production until `stop` is there, at least `count` times, and use what it names as a server would."""
    steps, mixed, stop = [], 0, root / "stop"
    with open_registry(root) as registry:
        while len(steps) < count or not stop.exists():
            began = time.monotonic_ns()
            head = registry.head()
            steps.append(Step(began, time.monotonic_ns(), "read", head.version))
            mixed += not _fits(registry, head)
    _write(root, f"reads-{worker}", steps)
    (root / f"mixed-{worker}.json").write_text(str(mixed), encoding="utf-8")


def _fits(registry: Registry, head: Snapshot) -> bool:
    """Whether stack, cursor and notes are those of one version: the adapter on top says which it belongs to."""
    paths = adapter_paths(head.stack, registry.objects)
    weights = [int(load_file(path / "adapter_model.safetensors")["layer.lora_A.weight"][0, 0]) for path in paths]
    return weights == list(range(1, len(paths) + 1)) and head.cursor == 6 * len(paths)


def read_everything(root: Path, worker: int, count: int) -> None:
    """Read all that a registry has; raises where something of it is damaged."""
    everything(root)


def _write(root: Path, name: str, steps: Iterable[Step]) -> None:
    (root / f"{name}.json").write_text(json.dumps([asdict(step) for step in steps]), encoding="utf-8")


def histories(root: Path, kind: str) -> list[Step]:
    """The steps that all processes of one role have written down."""
    files = sorted(root.glob(f"{kind}-*.json"))
    return [Step(**step) for path in files for step in json.loads(path.read_text(encoding="utf-8"))]


def lost_or_doubled(steps: Sequence[Step], snapshots: Sequence[Snapshot], first: int) -> list[str]:
    """What is wrong with commits that were all acknowledged, the first of them as version `first`."""
    found = [f"version {at} is called {s.version}" for at, s in enumerate(snapshots) if s.version != at]
    told, there = {step.name: step.version for step in steps}, {s.attempt: s.version for s in snapshots[first:]}
    found += [
        f"{name} was acknowledged as {told[name]}, and is {there.get(name)}"
        for name in told
        if told[name] != there.get(name)
    ]
    if len(snapshots) - first != len(told):
        found.append(f"{len(told)} commits were acknowledged, {len(snapshots) - first} are there")
    order = sorted(steps, key=lambda step: step.version or 0)
    latest = 0
    for step in order:
        if step.ended < latest:
            found.append(f"{step.name} had ended before an earlier version began")
        latest = max(latest, step.began)
    return found


def not_linearizable(moves: Sequence[RefMove], promotions: Sequence[Step], reads: Sequence[Step]) -> list[str]:
    """What no order of the calls explains, given the log of moves; each call takes effect at one moment within it.

    A move's reason is the name of the call that made it. Value `n` is what production is after move `n`: it can be seen
    from the begin of move `n` to the end of move `n + 1`.
    """
    calls = {step.name.rsplit(":", 1)[0]: step for step in promotions}
    made = [calls.get(move.reason) for move in moves]
    found = [f"move {n} is not chained" for n, (one, other) in enumerate(pairwise(moves)) if one.after != other.before]
    for name, step in calls.items():
        count = sum(move.reason == name for move in moves)
        if count != (step.version is not None):
            found.append(f"promotion {name} said {step.version}, and is {count} times in the log")
    latest = 0
    for move, call in zip(moves, made, strict=True):
        if call is not None:
            if int(call.name.rsplit(":", 1)[1]) != move.before:
                found.append(f"promotion {call.name} took the place of {move.before}")
            if call.ended < latest:
                found.append(f"promotion {call.name} had ended before an earlier one began")
            latest = max(latest, call.began)
    windows = [
        (move.after, call.began if call else 0, _end(made, at + 1))
        for at, (move, call) in enumerate(zip(moves, made, strict=True))
    ]
    for read in reads:
        if not any(v == read.version and began <= read.ended and ended >= read.began for v, began, ended in windows):
            found.append(f"a read saw {read.version} when production was never that")
    for step in promotions:
        expected = int(step.name.rsplit(":", 1)[1])
        if step.version is None and not any(
            v != expected and began <= step.ended and ended >= step.began for v, began, ended in windows
        ):
            found.append(f"promotion {step.name} was refused while production was {expected} all the time")
    return found


def _end(made: Sequence[Step | None], at: int) -> int:
    call = made[at] if at < len(made) else None
    return call.ended if call else 1 << 62 if at >= len(made) else 0


ROLES = {
    "commit_many": commit_many,
    "promote_many": promote_many,
    "read_until": read_until,
    "read_everything": read_everything,
}
