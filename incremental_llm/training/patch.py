"""A targeted patch: one correction becomes a minimal adapter in seconds, and nothing else moves.

    record = train_patch(base_folder=base, adapter_folders=stack, example=correction, held=held,
                         neighbours=near, unrelated=everyday, answer=greedy, out=folder, ...)

    micro-updates until the answer is right  ->  the smallest scale that still is  ->  every other prompt as before?

A few steps on a small adapter in the last layers, which starts at the answer's own inputs (aim.py), with
KL(before || after) on prompts that are held. It stops as soon as greedy decoding gives the answer and its NLL is low,
and the update is then scaled down as far as both still hold: more than that could only move other answers. What is
checked afterwards was not held.

The one design fact: before and after are the same loaded model, without and with the adapter. So an answer that differs
differs because of the patch, and not because of how a sum was rounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.artifacts import write_json
from incremental_llm.chat import Conversation, last_user_text
from incremental_llm.dataset.dedup import normalised
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import NothingToTrainError, TrainingError
from incremental_llm.training.aim import aim
from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.growth import set_values, trained_values
from incremental_llm.training.online import OnlineTrainer
from incremental_llm.training.phase import Progress
from incremental_llm.training.regularizers.teachers import Teacher, teacher_of
from incremental_llm.training.scoring import completion_logps
from incremental_llm.training.settings import (
    AnchorSettings,
    LoraSettings,
    PatchSettings,
    PhaseSettings,
    TrainingSettings,
)

Answer = Callable[[Any, Any, Sequence[Conversation], int], list[str]]
"""Greedy answers of (model, tokenizer) to conversations, of so many new tokens at most."""

RECORD = "patch.json"

_HALVINGS = 5  # of the scale: the smallest one that holds is found to 3 %
_SHOWN = 5  # prompts named in an error


@dataclass(frozen=True)
class Compared:
    """A prompt before and after: its greedy answers, and KL(before || after) on the first one (`kl`, nats a token)."""

    prompt: str
    before: str
    after: str
    kl: float


@dataclass(frozen=True)
class Checked:
    """A group of prompts: how many, which moved, how many greedy answers changed at all, and KL in nats a token.

    A prompt has moved if its KL is above `max_kl`, or its answer changed and the KL is above `tie_kl`.
    """

    count: int
    moved: tuple[Compared, ...]
    changed: int
    mean_kl: float
    max_kl: float

    @property
    def share(self) -> float:
        """Share of 1 that moved; 0 for an empty group."""
        return len(self.moved) / self.count if self.count else 0.0


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
    if before.right and before.nll <= patch.nll:
        raise NothingToTrainError(
            f"the policy answers {before.answer!r} already, at an NLL of {before.nll:.3f} nats a token (bound "
            f"{patch.nll}): there is nothing to patch."
        )
    progress("answering what must not move", 0, 1, None)
    checked = [*neighbours, *unrelated]
    answers = answer(trainer.causal_lm, trainer.tokenizer, [*checked, *held], patch.max_new_tokens)
    teacher = _teacher(trainer, checked, answers)
    others = list(zip(held, answers[len(checked) :], strict=True))
    trainer.hold(others)
    rows = [_row(trainer.tokenizer, prompt, said) for prompt, said in others]
    aim(trainer.model, target.row, rows, patch.damping, trainer.autocast)

    after, steps, tokens = before, 0, 0
    while not (after.right and after.nll <= patch.nll) and steps < patch.steps:
        report = trainer.update([example])
        steps, tokens = steps + report.steps, tokens + report.tokens
        after = target.look()
        progress("patching", steps, patch.steps, after.nll)
    if not (after.right and after.nll <= patch.nll):
        raise TrainingError(
            f"the answer was not learnt in {steps} steps: expected {example.completion!r} at an NLL below {patch.nll} "
            f"nats a token, found {after.answer!r} and {after.nll:.3f}. Raise steps, rank or layers of the patch."
        )
    scale, after = _smallest_scale(trainer, target, after, patch)
    progress("checking what must not move", 0, 1, None)
    now = answer(trainer.causal_lm, trainer.tokenizer, checked, patch.max_new_tokens)
    gaps = _kl_a_token(trainer, teacher)
    found = [
        Compared(last_user_text(prompt), *told) for prompt, *told in zip(checked, answers, now, gaps, strict=False)
    ]
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
        neighbours=_checked(found[: len(neighbours)], patch),
        unrelated=_checked(found[len(neighbours) :], patch),
        seconds=time.monotonic() - started,
    )
    if problem := _problem(record, patch):
        write_json(out / RECORD, asdict(record) | {"adapter": None, "problem": problem})
        raise TrainingError(problem)
    trainer.save(out / "adapter")
    write_json(out / RECORD, asdict(record) | {"adapter": "adapter", "problem": ""})
    return record


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


class _Target:
    """The correction, and the policy's answer to its prompt."""

    def __init__(self, trainer: OnlineTrainer, example: SftExample, answer: Answer) -> None:
        self._trainer, self._example, self._answer = trainer, example, answer
        self.row = _row(trainer.tokenizer, example.prompt, example.completion)

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
        if found.right and found.nll <= patch.nll:
            high, after = middle, found
        else:
            low = middle
    set_values(trainer.model, _scaled(whole, high))
    return high, after


def _scaled(values: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The same factors, with B multiplied by `share`."""
    return {name: value * share if ".lora_B." in name else value for name, value in values.items()}


def _row(tokenizer: Any, prompt: Conversation, text: str) -> Row:
    return Row(tuple(prompt_ids(tokenizer, prompt)), tuple(completion_ids(tokenizer, prompt, text)))


def _teacher(trainer: OnlineTrainer, prompts: Sequence[Conversation], answers: Sequence[str]) -> Teacher:
    """The policy's distributions now, at its own answers to `prompts`."""
    rows = [_row(trainer.tokenizer, prompt, text) for prompt, text in zip(prompts, answers, strict=False)]
    teacher = teacher_of(rows, None)
    teacher.remember(trainer.causal_lm, trainer.autocast)
    return teacher


@torch.no_grad()
def _kl_a_token(trainer: OnlineTrainer, teacher: Teacher) -> list[float]:
    """KL(before || now) of each of the teacher's rows, in nats a token."""
    device = next(trainer.model.parameters()).device
    found = []
    for index, row in enumerate(teacher.rows):
        ids_BT, scored_BT = (tensor.to(device) for tensor in pad_rows([row]))
        with trainer.autocast():
            now_NV = trainer.model(input_ids=ids_BT, labelled_BT=scored_BT).logits
            total = teacher.kl_sum(trainer.causal_lm, index, now_NV)
        found.append(max(0.0, float(total)) / len(row.completion))
    return found


def _checked(found: Sequence[Compared], patch: PatchSettings) -> Checked:
    gaps = [one.kl for one in found]
    return Checked(
        count=len(found),
        moved=tuple(one for one in found if not one.kl <= (patch.max_kl if one.before == one.after else patch.tie_kl)),
        changed=sum(one.before != one.after for one in found),
        mean_kl=sum(gaps) / len(gaps) if gaps else 0.0,
        max_kl=max(gaps, default=0.0),
    )


def _problem(record: PatchRecord, patch: PatchSettings) -> str:
    """Which prompts moved, in words, where more did than may; empty where the check is passed."""
    parts = []
    for name, group, allowed in (
        ("neighbouring", record.neighbours, patch.neighbours_may_move),
        ("unrelated", record.unrelated, patch.unrelated_may_move),
    ):
        if group.share > allowed:
            named = "; ".join(
                f"{one.prompt!r}: {one.before!r} -> {one.after!r} (KL {one.kl:.3f})" for one in group.moved[:_SHOWN]
            )
            parts.append(
                f"expected at most {allowed:.0%} of the {name} prompts to move, found {len(group.moved)} of "
                f"{group.count} ({named})"
            )
    if not parts:
        return ""
    return (
        f"the patch is not local: {'; '.join(parts)}. Leave the correction to the next increment, which rehearses, or "
        "allow more to move."
    )


def _depth(base_folder: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base_folder).get_text_config().num_hidden_layers)
