"""The folder of a run: which batch it is about, and whether an earlier command has begun it.

A run is decided by production, the recipe, the suites and the anchor's prompts, which are its `setting`, and by its
batch, which is pinned in the folder when training begins. The same command after a kill therefore goes on with
the same batch, whatever was imported in between: that waits for the next run.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import write_json
from incremental_llm.chat import Conversation, as_dicts, json_digest
from incremental_llm.config import RunConfig
from incremental_llm.errors import NothingToTrainError, TrainingInterrupted
from incremental_llm.evaluation import Suite
from incremental_llm.feedback import FeedbackStore
from incremental_llm.pending import Pending, read_pending
from incremental_llm.registry import Registry, Snapshot, attempt_key
from incremental_llm.replay import anchor_prompts
from incremental_llm.retrain import read_all

BATCH = "batch.json"

Reader = Callable[[Registry, FeedbackStore, RunConfig, int | None], Pending]
"""What an increment starts from, with the events up to a place in the log; None: with all there are."""


@dataclass(frozen=True)
class Run:
    """One increment about to be made: its batch, its folder, and in words what is continued ("" for a new run).

    `everyday` are the anchor's prompts, read once: what decides the run is also what it uses.
    """

    todo: Pending
    folder: Path
    setting: str
    everyday: tuple[Conversation, ...]
    continued: str = ""

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """From here on the run's work is worth continuing: pin its batch.

        Where training ends in an error it is let go, so that the next run takes all that is pending by then; only what
        the machine lacked, such as room on the disk or the time to end, is worth coming back to.
        """
        pin = {"setting": self.setting, "until": self.todo.until, "seqs": _seqs(self.todo)}
        write_json(self.folder / BATCH, pin)
        try:
            yield
        except (OSError, TrainingInterrupted):
            raise
        except Exception:
            (self.folder / BATCH).unlink()
            raise


def next_run(
    workspace: Path,
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    suites: Sequence[Suite],
    questions: Sequence[str],
    read: Reader | None = None,
) -> Run:
    """The next increment, in its folder of the workspace; writes nothing. `questions` are what may not be trained on.

    `read` reads what it starts from; by default production and what is pending, as the recipe's process has it.

    Raises:
        NothingToTrainError: there is no batch, or it has made a version already.
    """
    read = read or (read_all if config.process == "retrain" else read_pending)
    todo, runs = read(registry, store, config, None), workspace / "runs"
    anchor = config.training.anchor
    everyday = anchor_prompts(Path(anchor.prompts) if anchor.prompts else None) if anchor.weight else ()
    contracts = [[suite.name, suite.contract] for suite in suites]
    prompts = [as_dicts(prompt) for prompt in everyday]
    setting = json_digest([todo.head.hash, config.digest, contracts, list(questions), prompts])
    begun = _begun(runs, setting, todo, registry, config)
    if begun is None:
        if made := _made(registry, config, todo, _seqs(todo)):
            raise NothingToTrainError(
                f"these {len(todo.events)} events have made v{made.version} from v{todo.head.version} already. "
                f"To serve it again: illm registry promote {made.version}. Otherwise import new feedback."
            )
        name = f"v{todo.head.version + 1}-{json_digest([setting, _seqs(todo)])[:12]}"
        return Run(todo, runs / name, setting, everyday)
    folder, until = begun
    whole = read(registry, store, config, until)
    waiting = len(todo.events) - len(whole.events)
    newer = f"; {waiting} newer ones wait for the next run" if waiting else ""
    continued = f"continuing an interrupted run with its {len(whole.events)} events{newer}"
    return Run(whole, folder, setting, everyday, continued)


def _seqs(todo: Pending) -> list[int]:
    return [stored.seq for stored in todo.events]


def _made(registry: Registry, config: RunConfig, todo: Pending, seqs: Sequence[int]) -> Snapshot | None:
    """The version that this batch made from the same production: there is one where production was moved back."""
    return registry.committed(attempt_key(seqs, json_digest(config.recipe), todo.head.version, config.training.seed))


def _begun(runs: Path, setting: str, todo: Pending, registry: Registry, config: RunConfig) -> tuple[Path, int] | None:
    """Folder and last event of an unfinished run of this setting, whose whole batch is still pending."""
    judged = {attempt.seqs for attempt in registry.attempts()}
    found: list[tuple[int, Path]] = []
    for path in runs.glob(f"*/{BATCH}"):
        batch: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seqs, until = batch["seqs"], batch["until"]
        pending = [stored.seq for stored in todo.events if stored.seq <= until]
        unfinished = batch["setting"] == setting and pending == seqs and tuple(seqs) not in judged
        if unfinished and _made(registry, config, todo, seqs) is None:
            found.append((until, path.parent))
    if not found:
        return None
    until, folder = max(found)
    return folder, until


class Clock:
    """Seconds of each stage, in order; kept on the disk, so that a continued run adds to what was there."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._last = time.monotonic()
        self.laps: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now
        write_json(self._kept, self.laps)
