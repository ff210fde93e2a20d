"""What has to hold whatever went wrong, said once; each breach is a kind and words.

`torn`: a state that is neither the old nor the new one. `lost`: what was acknowledged is not there, or what was said to
have failed is. `unreadable`: it cannot be opened, read or written any more.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from incremental_llm.registry.objects import no_failpoint

from .operations import Operation
from .worker import Ending
from .world import State, fingerprint, night, observe, open_registry

Kind = Literal["torn", "lost", "unreadable"]


@dataclass(frozen=True)
class Breach:
    """One promise that did not hold."""

    kind: Kind
    text: str


@dataclass
class Verdict:
    """What was found after a fault. `seconds` is how long the first opening took, recovery included."""

    breaches: list[Breach] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: Kind, text: str) -> None:
        self.breaches.append(Breach(kind, text))


def states_of(operation: Operation, root: Path) -> list[State]:
    """Every state that the operation commits on its way, the one it starts from first; runs it at `root`."""
    seen: list[State] = []

    def look(_name: str = "") -> None:
        with open_registry(root) as registry:
            state = observe(registry)
        if not seen or seen[-1] != state:
            seen.append(state)

    look()
    operation.run(root, look)
    look()
    return seen


def check(root: Path, operation: Operation, allowed: Sequence[State], ending: Ending, *, twice: bool = True) -> Verdict:
    """Open what a fault left, and hold it to every promise. `allowed` as `states_of` gives them.

    `twice`: and recover a second time, which must change nothing.
    """
    verdict = Verdict()
    try:
        found = _check_first_sight(verdict, root, operation, allowed, ending)
        _check_recovery(verdict, root, operation, 1 + twice)
        if len(allowed) == 2 and found == allowed[0]:
            _check_again(verdict, root, operation, allowed)
        _check_going_on(verdict, root)
    except Exception as error:
        verdict.add("unreadable", f"{type(error).__name__}: {error}")
    return verdict


def _check_first_sight(
    verdict: Verdict, root: Path, operation: Operation, allowed: Sequence[State], ending: Ending
) -> State:
    started = time.perf_counter()
    with open_registry(root) as registry:
        registry.head()
        verdict.seconds = time.perf_counter() - started
        state, problems = observe(registry), registry.verify()
    for problem in problems:
        if not (operation.pending and problem.subject.startswith(operation.pending)):
            verdict.add("torn", str(problem))
    if state not in allowed:
        verdict.add("torn", "a state that is neither an old nor a new one")
    if ending is Ending.DONE and state != allowed[-1]:
        verdict.add("lost", "what was acknowledged is not there")
    if ending in (Ending.FAILED, Ending.OTHER) and len(allowed) == 2 and state != allowed[0]:
        verdict.add("lost", "what was said to have changed nothing is there")
    if ending is Ending.FOREIGN:
        verdict.add("lost", "an error that does not say what became of it")
    return state


def _check_recovery(verdict: Verdict, root: Path, operation: Operation, times: int) -> None:
    found = []
    for _ in range(times):
        operation.resume(root)
        with open_registry(root) as registry:
            state, problems = observe(registry), registry.verify()
        found.append((state, fingerprint(root)))
    if found[0] != found[-1]:
        changed = found[0][1].items() ^ found[-1][1].items()
        verdict.add("torn", f"recovered twice is not recovered once: {sorted({name for name, _ in changed})}")
    for text in (*map(str, problems), *operation.promise(root)):
        verdict.add("torn", text)


def _check_again(verdict: Verdict, root: Path, operation: Operation, allowed: Sequence[State]) -> None:
    """What has not happened can be done again, whatever the first try has left."""
    operation.run(root, no_failpoint)
    with open_registry(root) as registry:
        if observe(registry) != allowed[-1]:
            verdict.add("torn", "done again it gives another state")


def _check_going_on(verdict: Verdict, root: Path) -> None:
    """The next night goes through."""
    made = root / "next"
    with open_registry(root) as registry:
        version = night(registry, 7, made, attempt="the next one").version
        if registry.head().version != version:
            verdict.add("lost", "the next commit is not there")
        for problem in registry.verify():
            verdict.add("torn", f"after the next commit: {problem}")
    shutil.rmtree(made)
