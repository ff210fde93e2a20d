"""The general anchor: KL(teacher || new) on the everyday answers of the teacher: the previous policy, or the base.

Shapes: N positions of a batch, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from incremental_llm.training.batching import Row
from incremental_llm.training.regularizers.teachers import teacher_of


@dataclass(frozen=True)
class AnchorShare:
    """The anchor rows of one part of a step; `scale` makes the sum over their tokens a mean over the whole step's."""

    indices: tuple[int, ...]
    rows: tuple[Row, ...]
    scale: float


class Anchor:
    """Anchor conversations with the teacher's distributions at every position that has a next token.

    `seed` is that of the order in which steps take the rows.
    """

    def __init__(
        self, rows: Sequence[Row], *, weight: float, rows_per_step: int, seed: int, top_k: int | None = None
    ) -> None:
        # Questions and answers count, every token of them: a row's "completion" begins where the rows begin to differ.
        # What they have in common is the template's system prompt, which no model ever has to predict.
        tokens = [row.prompt + row.completion for row in rows]
        shared = max(1, _common_length(tokens))
        self.rows = [Row(row[:shared], row[shared:]) for row in tokens]
        self.weight = weight
        self.rows_per_step = min(rows_per_step, len(rows))
        self.seed = seed
        self._teacher = teacher_of(self.rows, top_k)

    def remember_teacher(self, model: Any, autocast: Any) -> None:
        """Store the distributions of the teacher, which `model` is at the time."""
        self._teacher.remember(model, autocast)

    def share(self, step: int, part: int, parts: int) -> AnchorShare:
        """The rows of an optimizer step that go with one of its parts: none where there are more parts than rows.

        A part is a micro-batch of one process; however a step is cut, it has the same rows.
        """
        chosen = self._rows_of(step)
        mine = chosen[part::parts]
        total = sum(len(self.rows[i].completion) for i in chosen)
        return AnchorShare(tuple(mine), tuple(self.rows[i] for i in mine), parts / total)

    def loss(self, causal_lm: Any, share: AnchorShare, student_NV: torch.Tensor) -> torch.Tensor:
        """weight * mean over the step's tokens of KL(teacher || new), in nats; gradients flow to `student_NV`.

        Scaled so that the mean over the step's parts is the value of the whole step. `student_NV` are the new policy's
        logits at the positions of `share`; `causal_lm` is the model whose frozen head turns states into logits.
        """
        if not share.rows:
            return student_NV.sum() * 0.0
        total = student_NV.new_zeros((), dtype=torch.float32)
        lengths = [len(row.completion) for row in share.rows]
        # Row by row: buffers of a whole batch are so large that the system hands out and clears new pages every time.
        for index, row_NV in zip(share.indices, student_NV.split(lengths), strict=True):
            total = total + self._teacher.kl_sum(causal_lm, index, row_NV)
        return self.weight * share.scale * total

    def _rows_of(self, step: int) -> list[int]:
        """The rows of a step: consecutive slices of reshuffled passes, the same on every process and after a resume."""
        first = step * self.rows_per_step
        chosen = []
        for position in range(first, first + self.rows_per_step):
            lap, offset = divmod(position, len(self.rows))
            order = random.Random(f"{self.seed}:{lap}").sample(range(len(self.rows)), len(self.rows))
            chosen.append(order[offset])
        return chosen


def _common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Leading tokens that all rows share, leaving each at least one of its own; 0 for a single row."""
    if len(rows) < 2:
        return 0
    low, high, limit = min(rows), max(rows), min(map(len, rows)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)
