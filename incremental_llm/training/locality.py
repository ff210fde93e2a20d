"""Whether a patch is local: other prompts before and after it, by their greedy answers and by KL.

    watch = Watch(trainer, prompts, answer, max_new_tokens)     # what the policy says now
    ...                                                         # the patch
    found = watch.compare()                                     # each prompt before and after
    checked(found, patch)                                       # how many moved

Before and after are the same loaded model, so an answer that differs differs because of what was trained in between,
and not because of how a sum was rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.chat import Conversation, last_user_text
from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.online import OnlineTrainer
from incremental_llm.training.regularizers.teachers import Teacher, teacher_of
from incremental_llm.training.settings import PatchSettings

Answer = Callable[[Any, Any, Sequence[Conversation], int], list[str]]
"""Greedy answers of (model, tokenizer) to conversations, of so many new tokens at most."""

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


class Watch:
    """What the policy says now to `prompts`, kept to be compared with what it says later."""

    def __init__(
        self, trainer: OnlineTrainer, prompts: Sequence[Conversation], answer: Answer, max_new_tokens: int
    ) -> None:
        self._trainer, self._prompts, self._answer, self._length = trainer, prompts, answer, max_new_tokens
        self._answers = self._say()
        rows = [row_of(trainer.tokenizer, prompt, text) for prompt, text in zip(prompts, self._answers, strict=True)]
        self._teacher: Teacher = teacher_of(rows, None)
        self._teacher.remember(trainer.causal_lm, trainer.autocast)

    def compare(self) -> list[Compared]:
        """Each prompt then and now, in order."""
        told = zip(self._prompts, self._answers, self._say(), self._kl_a_token(), strict=True)
        return [Compared(last_user_text(prompt), before, now, kl) for prompt, before, now, kl in told]

    def _say(self) -> list[str]:
        return self._answer(self._trainer.causal_lm, self._trainer.tokenizer, self._prompts, self._length)

    @torch.no_grad()
    def _kl_a_token(self) -> list[float]:
        """KL(then || now) of each prompt's first answer, in nats a token."""
        model, teacher = self._trainer.model, self._teacher
        device = next(model.parameters()).device
        found = []
        for index, row in enumerate(teacher.rows):
            ids_BT, scored_BT = (tensor.to(device) for tensor in pad_rows([row]))
            with self._trainer.autocast():
                now_NV = model(input_ids=ids_BT, labelled_BT=scored_BT).logits
                total = teacher.kl_sum(self._trainer.causal_lm, index, now_NV)
            kl = float(total) / len(row.completion)
            found.append(0.0 if kl < 0 else kl)  # rounding; a NaN stays one
        return found


def checked(found: Sequence[Compared], patch: PatchSettings) -> Checked:
    """A group's verdicts, by the bounds of `patch`."""
    gaps = [one.kl for one in found]
    return Checked(
        count=len(found),
        moved=tuple(one for one in found if not one.kl <= (patch.max_kl if one.before == one.after else patch.tie_kl)),
        changed=sum(one.before != one.after for one in found),
        mean_kl=sum(gaps) / len(gaps) if gaps else 0.0,
        max_kl=max(gaps, default=0.0),
    )


def problem_of(neighbours: Checked, unrelated: Checked, patch: PatchSettings) -> str:
    """Which prompts moved, in words, where more did than may, or were not checked; empty where the check is passed."""
    parts = []
    for name, group, allowed in (
        ("neighbouring", neighbours, patch.neighbours_may_move),
        ("unrelated", unrelated, patch.unrelated_may_move),
    ):
        if not group.count:
            parts.append(f"expected {name} prompts to check, found none")
        elif group.share > allowed:
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


def row_of(tokenizer: Any, prompt: Conversation, text: str) -> Row:
    return Row(tuple(prompt_ids(tokenizer, prompt)), tuple(completion_ids(tokenizer, prompt, text)))
