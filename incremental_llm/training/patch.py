"""A targeted patch: one correction becomes a minimal adapter in seconds, and nothing else moves.

    record = train_patch(base_folder=base, adapter_folders=stack, example=correction, held=held,
                         neighbours=near, unrelated=everyday, answer=greedy, out=folder, ...)

    micro-updates until the answer is right  ->  the smallest scale that still is  ->  every other prompt as before?

A few steps on a small adapter in the last layers, which starts at the answer's own inputs (aim.py), with
KL(before || after) on prompts that are held. It stops as soon as greedy decoding gives the answer and its NLL is low,
and the update is then scaled down as far as both still hold: more than that could only move other answers. What is
checked afterwards (locality.py) was not held.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from incremental_llm.artifacts import write_json
from incremental_llm.chat import Conversation
from incremental_llm.dataset.dedup import normalised
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import NothingToTrainError, TrainingError
from incremental_llm.training.aim import aim
from incremental_llm.training.growth import set_values, trained_values
from incremental_llm.training.locality import Answer, Checked, Watch, checked, problem_of, row_of
from incremental_llm.training.online import OnlineTrainer
from incremental_llm.training.phase import Progress
from incremental_llm.training.scoring import completion_logps
from incremental_llm.training.settings import (
    AnchorSettings,
    LoraSettings,
    PatchSettings,
    PhaseSettings,
    TrainingSettings,
)

RECORD = "patch.json"

_HALVINGS = 5  # of the scale: the smallest one that holds is found to 3 %


@dataclass(frozen=True)
class PatchRecord:
    """A patch before and after. NLL is that of the right answer, in nats a token; `scale` what the update was cut to.

    `parameters` are the numbers that the adapter holds; `adapter` is None where the check was not passed.
    """

    adapter: Path | None
    answer_before: str
    answer_after: str
    nll_before: float
    nll_after: float
    steps: int
    tokens: int
    scale: float
    parameters: int
    neighbours: Checked
    unrelated: Checked
    seconds: float


def train_patch(
    *,
    base_folder: Path,
    adapter_folders: Sequence[Path],
    example: SftExample,
    held: Sequence[Conversation],
    neighbours: Sequence[Conversation],
    unrelated: Sequence[Conversation],
    settings: TrainingSettings,
    patch: PatchSettings,
    answer: Answer,
    out: Path,
    progress: Progress = lambda what, done, total, loss: None,
) -> PatchRecord:
    """Make the policy of this stack give `example`'s completion, and check that the other prompts are as before.

    `out` gets the adapter (a plain PEFT folder, to stand on the stack) and `patch.json`; where the check is not passed,
    the latter alone. Of `settings`, precision, quantisation, `frozen`, `max_length` and the adapter's targets count.

    Raises:
        NothingToTrainError: the policy gives that answer already.
        TrainingError: the answer was not learnt in `patch.steps` steps, or more prompts moved than may.
    """
    started = time.monotonic()
    trainer = OnlineTrainer(
        base_folder=base_folder,
        adapter_folders=adapter_folders,
        settings=patch_settings(settings, patch, _depth(base_folder)),
        anchors=None,
        steps=patch.round,
        progress=progress,
    )
    target = _Target(trainer, example, answer)
    before = target.look()
    if before.holds(patch):
        raise NothingToTrainError(
            f"the policy answers {before.answer!r} already, at an NLL of {before.nll:.3f} nats a token (bound "
            f"{patch.nll}): there is nothing to patch."
        )
    progress("answering what must not move", 0, 1, None)
    watch = Watch(trainer, [*neighbours, *unrelated], answer, patch.max_new_tokens)
    said = answer(trainer.causal_lm, trainer.tokenizer, held, patch.max_new_tokens)
    others = list(zip(held, said, strict=True))
    trainer.hold(others)
    aim(
        trainer.model,
        target.row,
        [row_of(trainer.tokenizer, prompt, text) for prompt, text in others],
        patch.damping,
        trainer.autocast,
    )
    after, steps, tokens = _learn(trainer, target, before, example, patch, progress)
    scale, after = _smallest_scale(trainer, target, after, patch)
    progress("checking what must not move", 0, 1, None)
    found = watch.compare()
    record = PatchRecord(
        adapter=out / "adapter",
        answer_before=before.answer,
        answer_after=after.answer,
        nll_before=before.nll,
        nll_after=after.nll,
        steps=steps,
        tokens=tokens,
        scale=scale,
        parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        neighbours=checked(found[: len(neighbours)], patch),
        unrelated=checked(found[len(neighbours) :], patch),
        seconds=time.monotonic() - started,
    )
    if problem := problem_of(record.neighbours, record.unrelated, patch):
        write_json(out / RECORD, asdict(record) | {"adapter": None, "problem": problem})
        raise TrainingError(problem)
    trainer.save(out / "adapter")
    write_json(out / RECORD, asdict(record) | {"adapter": "adapter", "problem": ""})
    return record


def _learn(
    trainer: OnlineTrainer,
    target: _Target,
    before: _Look,
    example: SftExample,
    patch: PatchSettings,
    progress: Progress,
) -> tuple[_Look, int, int]:
    """Micro-updates until the answer holds: what the policy says then, and the steps and tokens that it took.

    Raises:
        TrainingError: it does not hold after `patch.steps` steps.
    """
    after, steps, tokens = before, 0, 0
    while not after.holds(patch) and steps < patch.steps:
        report = trainer.update([example])
        steps, tokens = steps + report.steps, tokens + report.tokens
        after = target.look()
        progress("patching", steps, patch.steps, after.nll)
    if not after.holds(patch):
        raise TrainingError(
            f"the answer was not learnt in {steps} steps: expected {example.completion!r} at an NLL below {patch.nll} "
            f"nats a token, found {after.answer!r} and {after.nll:.3f}. Raise steps, rank or layers of the patch."
        )
    return after, steps, tokens


def patch_settings(settings: TrainingSettings, patch: PatchSettings, depth: int) -> TrainingSettings:
    """What a patch's micro-updates are trained with, on a base of `depth` layers."""
    told = AnchorSettings(
        weight=patch.kl_weight, rows_per_step=patch.rows_per_step, max_new_tokens=patch.max_new_tokens
    )
    return TrainingSettings(
        seed=patch.seed,
        precision=settings.precision,
        quantization=settings.quantization,
        frozen=settings.frozen,
        max_length=settings.max_length,
        lora=LoraSettings(
            rank=patch.rank,
            alpha=patch.alpha,
            targets=patch.targets or settings.lora.targets,
            first_layer=max(0, depth - patch.layers),
        ),
        anchor=told,
        phases=(
            PhaseSettings(
                objective="sft", learning_rate=patch.learning_rate, epochs=2 * patch.round, batch_size=2, warmup=0
            ),
        ),
    )


@dataclass(frozen=True)
class _Look:
    """Greedy answer, whether it is the right one, and the right one's NLL in nats a token."""

    answer: str
    right: bool
    nll: float

    def holds(self, patch: PatchSettings) -> bool:
        return self.right and self.nll <= patch.nll


class _Target:
    """The correction, and the policy's answer to its prompt."""

    def __init__(self, trainer: OnlineTrainer, example: SftExample, answer: Answer) -> None:
        self._trainer, self._example, self._answer = trainer, example, answer
        self.row = row_of(trainer.tokenizer, example.prompt, example.completion)

    def look(self) -> _Look:
        """What the policy says now; the answer may be a few tokens longer than the right one, to see that it ends."""
        trainer = self._trainer
        (logp,) = completion_logps(trainer.model, [self.row], trainer.autocast)
        length = len(self.row.completion) + 4
        (said,) = self._answer(trainer.causal_lm, trainer.tokenizer, [self._example.prompt], length)
        right = normalised(said) == normalised(self._example.completion)
        return _Look(said, right, -logp / len(self.row.completion))


def _smallest_scale(trainer: OnlineTrainer, target: _Target, after: _Look, patch: PatchSettings) -> tuple[float, _Look]:
    """Cut the update s·BA to the smallest share of itself (found by halving) under which the answer still holds."""
    whole = trained_values(trainer.model)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        set_values(trainer.model, _scaled(whole, middle))
        found = target.look()
        if found.holds(patch):
            high, after = middle, found
        else:
            low = middle
    set_values(trainer.model, _scaled(whole, high))
    return high, after


def _scaled(values: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The same factors, with B multiplied by `share`."""
    return {name: value * share if ".lora_B." in name else value for name, value in values.items()}


def _depth(base_folder: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base_folder).get_text_config().num_hidden_layers)
