"""Online micro-updates: a resident policy that takes feedback in as it comes, seconds from an event to its weights.

    trainer = OnlineTrainer(base_folder=base, adapter_folders=stack, settings=settings, anchors=anchors, buffer=buffer)
    report = trainer.update(examples)       # a correction, or a handful
    trainer.save(folder)                    # a plain PEFT adapter, as an increment's

One adapter goes on from update to update with its optimizer's moments. Each update is a very small increment: the same
plans, trainers and losses, a few steps, old rows mixed in from a bounded buffer, and the policy right before it as the
reference of DPO and KTO. The anchor holds everyday answers to the policy at the start.

The one design fact: an update happens or it does not. One that fails leaves the policy as it was, and nothing is on the
disk before `save`: a resident policy that is killed has learnt nothing.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from incremental_llm.adapters.load import load_tokenizer, native_dtype
from incremental_llm.artifacts import verify_folder
from incremental_llm.chat import Conversation
from incremental_llm.dataset.examples import Example
from incremental_llm.errors import ConfigError, NothingToTrainError
from incremental_llm.replay import ReplayBuffer, ReplaySettings, mix
from incremental_llm.training import invariants
from incremental_llm.training.adapter import adapter_in_autocast_dtype
from incremental_llm.training.batching import TokenExample
from incremental_llm.training.growth import RECORD, increments_behind, set_values, trained_values
from incremental_llm.training.increment import IncrementResult, read_result, tokenize_by_kind
from incremental_llm.training.moments import Moments, moments_beside
from incremental_llm.training.phase import PhaseContext, PhaseReport, Progress, run_phase
from incremental_llm.training.plan import plan_phase
from incremental_llm.training.policy import anchor_of, ground_of, memory_of, penalties_of, publish
from incremental_llm.training.regularizers import Regularizers
from incremental_llm.training.regularizers.stored import Stored, stored_beside
from incremental_llm.training.settings import PhaseSettings, TrainingSettings


@dataclass(frozen=True)
class UpdateReport:
    """What one update did. `seconds` are from the examples to the weights; `replayed` counts the old rows mixed in."""

    number: int
    examples: int
    replayed: int
    seconds: float
    phases: tuple[PhaseReport, ...]
    not_trained: tuple[str, ...] = ()  # ids of examples
    waiting: tuple[str, ...] = ()  # those of them that were too few of their kind: to be given again with the next ones

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Tokens trained, over all phases."""
        return sum(phase.tokens for phase in self.phases)

    @property
    def losses(self) -> dict[str, float]:
        """The loss of each objective's last step; an objective that was skipped has none."""
        return {phase.objective: phase.losses[-1] for phase in self.phases if phase.losses}


INCREMENT = 5000
"""Examples after which the replay buffer takes an endless stream of updates for another increment.

The updates of one are sampled anew each time, from all of its examples: so many are held in memory, besides the buffer.
"""


class OnlineTrainer:
    """The resident policy; on one process.

    Args:
        adapter_folders: the stack, oldest first; under `growth: continue` its last adapter goes on, else a fresh one
            above it does.
        settings: a recipe's; of each phase at most `steps` steps are run in an update.
        anchors: everyday conversations with the answers of the anchor's teacher; None: no anchor before `hold`.
        buffer: what earlier increments left to rehearse, `replay` how much of it an update sees.
    """

    def __init__(
        self,
        *,
        base_folder: Path,
        adapter_folders: Sequence[Path],
        settings: TrainingSettings,
        anchors: Sequence[tuple[Conversation, str]] | None = (),
        buffer: ReplayBuffer | None = None,
        replay: ReplaySettings | None = None,
        steps: int = 8,
        progress: Progress = lambda what, done, total, loss: None,
    ) -> None:
        _check_replay(replay or ReplaySettings())
        gc.collect()
        gc.freeze()  # else each phase of an update searches all that was imported for garbage, half a second long
        settings = settings.at_dtype(native_dtype()).after(increments_behind(adapter_folders))
        self.settings = settings.model_copy(update={"phases": tuple(_short(phase, steps) for phase in settings.phases)})
        self.buffer = ReplayBuffer().under(replay or ReplaySettings(), settings.seed) if buffer is None else buffer
        self.tokenizer = load_tokenizer(base_folder)
        self.updates = 0
        self._taken: list[Example] = []
        self._replay = replay or ReplaySettings()
        self._increment = 1 + max((i for counts in self.buffer.seen.values() for i in counts), default=0)
        self._base_name = base_folder.name
        self._below = list(adapter_folders)
        self._progress = progress
        ground = ground_of(base_folder, adapter_folders, self.tokenizer, anchors, settings, progress)
        self.model, self.autocast = ground.begin_adapter(settings, progress), ground.autocast
        self.model.eval()
        penalties, self.notes = penalties_of(ground, adapter_folders, settings)
        self._regularizers = Regularizers(anchor=ground.anchor, penalties=penalties)
        invariants.check_only_adapter_trains(self.model)
        self._frozen = invariants.frozen_digest(self.model)
        self._replaced = ground.going_on
        self._moments: dict[str, Moments] = moments_beside(ground.going_on) if ground.going_on else {}
        self._done: list[UpdateReport] = []

    def hold(self, anchors: Sequence[tuple[Conversation, str]]) -> None:
        """Hold the policy, from here on, to what it says now in these conversations; in the place of other anchors."""
        anchor = anchor_of(self.tokenizer, anchors, self.settings)
        if anchor is not None:
            anchor.remember_teacher(self.causal_lm, self.autocast)
        self._regularizers = replace(self._regularizers, anchor=anchor)

    @property
    def causal_lm(self) -> Any:
        """The policy as it is now, as a plain causal language model: what answers."""
        return self.model.get_base_model()

    def update(self, examples: Sequence[Example], rehearse: ReplayBuffer | None = None) -> UpdateReport:
        """Train a few steps on `examples` and on old rows of `rehearse`, by default the buffer, which then takes them.

        Raises:
            NothingToTrainError: no phase has enough of its kind; the policy and the buffer are as they were.
            TrainingError: an invariant broke, such as a loss that is not finite; likewise.
        """
        started = time.monotonic()
        seed = random.Random(f"update:{self.settings.seed}:{self.updates}").randrange(2**32)
        settings = self.settings.model_copy(update={"seed": seed})
        mixture = mix(examples, self.buffer if rehearse is None else rehearse, self._replay, seed)
        replayed = frozenset(row.example.id for row in mixture.rows if row.origin == "replay")
        before, moments = trained_values(self.model), dict(self._moments)
        try:
            reports, reached, short = self._train([row.example for row in mixture.rows], replayed, settings, moments)
        except BaseException:
            set_values(self.model, before)
            self.model.eval()
            raise
        self._moments = moments
        self.updates += 1
        waiting = tuple(example.id for example in examples if example.id in short)
        if len(self._taken) >= INCREMENT:
            self._increment, self._taken = self._increment + 1, []
        self._taken += [example for example in examples if example.id not in short]
        self.buffer = self._older().updated(self._taken, self._increment, self.settings.seed, self._replay)
        report = UpdateReport(
            number=self.updates,
            examples=len(examples),
            replayed=len(replayed),
            seconds=time.monotonic() - started,
            phases=tuple(reports),
            not_trained=tuple(example.id for example in examples if example.id not in reached),
            waiting=waiting,
        )
        self._done.append(report)
        return report

    def keep(self, kept: ReplayBuffer, ended: Collection[str] = ()) -> None:
        """Rehearse `kept`, the buffer less what is no longer true, from now on, and nothing from events `ended`."""
        gone = {item.example.id for item in self.buffer.items} - {item.example.id for item in kept.items}
        self.buffer = kept
        out = frozenset(ended)
        self._taken = [e for e in self._taken if e.id not in gone and out.isdisjoint(e.sources)]

    def _older(self) -> ReplayBuffer:
        """The buffer without the updates' examples: together they are one increment, sampled anew each time."""
        items = tuple(item for item in self.buffer.items if item.increment != self._increment)
        seen = {
            kind: {i: n for i, n in counts.items() if i != self._increment} for kind, counts in self.buffer.seen.items()
        }
        return self.buffer.model_copy(update={"items": items, "seen": seen})

    def _train(
        self,
        examples: Sequence[Example],
        replayed: frozenset[str],
        settings: TrainingSettings,
        moments: dict[str, Moments],
    ) -> tuple[list[PhaseReport], set[str], set[str]]:
        """The phases' reports, the ids of what they reached and of what was too little of its kind for any.

        `moments` becomes that of their optimizers.
        """
        kinds, too_long = tokenize_by_kind(self.tokenizer, examples, settings.max_length)
        phases = [phase for phase in settings.phases if len(kinds[phase.kind]) >= phase.minimum]
        if not phases:
            counts = ", ".join(f"{len(rows)} {kind}" for kind, rows in kinds.items())
            raise NothingToTrainError(
                f"nothing to update with: expected a phase with its `minimum` of examples, found {counts}, and "
                f"{len(too_long)} too long. Give them again together with the next ones."
            )
        short = {e.id for phase in settings.phases for e in _too_few(phase, kinds[phase.kind])}
        self.model.eval()
        memory, _ = memory_of(self._below, settings)
        plans = [plan_phase(p, kinds, self.model, self.autocast, settings, _silent, replayed, memory) for p in phases]
        if memory:
            memory.remember(self.causal_lm, self.autocast)
        told = self._regularizers
        if told.anchor is not None:
            told.anchor.seed = settings.seed  # every update begins at the first step: other rows than the one before
        context = PhaseContext(
            model=self.model,
            tokenizer=self.tokenizer,
            settings=settings,
            autocast=self.autocast,
            regularizers=Regularizers(told.anchor, memory if memory else None, told.penalties),
            progress=self._progress,
            checkpoints=False,
        )
        reports: list[PhaseReport] = []
        reached: set[str] = set()
        with adapter_in_autocast_dtype(self.model, settings), tempfile.TemporaryDirectory() as scratch:
            for plan in plans:
                objective: str = plan.settings.objective
                same = not (reached or settings.lora.dropout)
                report, state = run_phase(
                    context, plan, Path(scratch) / objective, moments.get(objective), at_reference=same
                )
                if report.steps:
                    moments[objective] = state
                    reached |= plan.reached
                reports.append(report)
        return reports, reached, short - reached

    def save(self, folder: Path) -> IncrementResult:
        """Write the adapter as it is now, a plain PEFT folder with its record, as an increment leaves it.

        Raises:
            TrainingError: a frozen weight has changed since the start.
        """
        invariants.check_frozen(self._frozen, invariants.frozen_digest(self.model))
        invariants.check_only_adapter_trains(self.model)
        result = IncrementResult(
            adapter=folder,
            phases=tuple(self._whole_phase(phase.objective) for phase in self.settings.phases),
            seconds=sum(report.seconds for report in self._done),
            tokens=sum(report.tokens for report in self._done),
            not_trained=tuple(dict.fromkeys(name for report in self._done for name in report.not_trained)),
            notes=(f"{self.updates} online updates", *self.notes),
            replaces=1 if self._replaced else 0,
            increments=1 + (increments_behind([self._replaced]) if self._replaced else 0),
        )
        kept = self._moments if self.settings.growth == "continue" else {}
        stored = stored_beside(self._below[-1]) if self._below else Stored()
        publish(self.model, folder, self._base_name, RECORD, asdict(result) | {"adapter": None}, kept, stored)
        verify_folder(folder)
        return read_result(folder)

    def _whole_phase(self, objective: str) -> PhaseReport:
        """The reports of all updates as one."""
        found = [phase for report in self._done for phase in report.phases if phase.objective == objective]
        names = sorted({name for phase in found for name in phase.terms})
        return PhaseReport(
            objective=objective,
            examples=sum(phase.examples for phase in found),
            steps=sum(phase.steps for phase in found),
            tokens=sum(phase.tokens for phase in found),
            seconds=sum(phase.seconds for phase in found),
            losses=[loss for phase in found for loss in phase.losses],
            terms={name: [value for phase in found for value in phase.terms.get(name, [])] for name in names},
            note="" if any(phase.steps for phase in found) else "no update had anything of its kind",
        )


def _check_replay(replay: ReplaySettings) -> None:
    """Raises ConfigError for what an update cannot do: production does not measure or answer old examples for it."""
    default, told = ReplaySettings().model_dump(), replay.model_dump()
    needs = ("policy", "balance", "answers", "capacity_tokens", "max_days")
    wrong = [
        f"replay.{key}: {told[key]}"
        for key in needs
        if told[key] != default[key] and (key, told[key]) not in _UPDATES_KNOW
    ]
    if wrong:
        raise ConfigError(
            f"online updates: expected replay by what the buffer holds, found {', '.join(wrong)}, which needs "
            "production or the log. Override it, such as --set replay.policy=balanced."
        )


_UPDATES_KNOW = {("policy", name) for name in ("reservoir", "window", "half_life")}


def _short(phase: PhaseSettings, steps: int) -> PhaseSettings:
    """A phase as an update runs it: at most `steps` steps, and one example is enough but for KTO's baseline."""
    minimum = phase.minimum if phase.objective == "kto" else 1
    return phase.model_copy(update={"max_steps": min(steps, phase.max_steps or steps), "minimum": minimum})


def _too_few(phase: PhaseSettings, rows: Sequence[TokenExample]) -> Sequence[TokenExample]:
    """The rows of a phase that cannot run with so many: below its minimum, or thumbs down alone."""
    alone = phase.objective == "kto" and not any(row.desirable for row in rows)
    return rows if alone or len(rows) < phase.minimum else ()


def _silent(done: int, total: int, loss: float | None) -> None:
    """Laying an update out takes no time worth telling of."""
