"""The general anchor: KL(teacher || new) on the everyday answers of the teacher: the previous policy, or the base.

Shapes: T tokens of an anchor conversation, N positions of a batch, V vocabulary, D hidden size.

The teacher's distribution over V tokens is too large to keep (T x 49,152), its final hidden states are not (T x 576):
they are computed once and the head, which is frozen, turns them back into the exact distribution at every step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows
from incremental_llm.training.scoring import head_logits, labelled_hidden


@dataclass(frozen=True)
class AnchorShare:
    """Anchor rows of one process in one step; `scale` makes the sum over their tokens a mean over the whole step's."""

    indices: tuple[int, ...]
    rows: tuple[Row, ...]
    scale: float


class Anchor:
    """Anchor conversations with the teacher's hidden states at every position that has a next token."""

    def __init__(self, rows: Sequence[Row], *, weight: float, rows_per_step: int, seed: int) -> None:
        # Questions and answers count, every token of them: a row's "completion" begins where the rows begin to differ.
        # What they have in common is the template's system prompt, which no model ever has to predict.
        tokens = [row.prompt + row.completion for row in rows]
        shared = max(1, _common_length(tokens))
        self.rows = [Row(row[:shared], row[shared:]) for row in tokens]
        self.weight = weight
        self.rows_per_step = min(rows_per_step, len(rows))
        self._seed = seed
        self._teacher_TD: list[torch.Tensor] = []

    @torch.no_grad()
    def remember_teacher(self, model: Any, autocast: Any) -> None:
        """Store the hidden states of the teacher, which `model` is at the time."""
        device = next(model.parameters()).device
        found: dict[int, torch.Tensor] = {}
        for chunk in length_sorted_chunks(self.rows):
            ids_BT, scored_BT = pad_rows([self.rows[i] for i in chunk])
            with autocast():
                hidden_ND = labelled_hidden(model.base_model, ids_BT.to(device), scored_BT.to(device))
            lengths = [len(self.rows[i].completion) for i in chunk]
            found.update(zip(chunk, (part.clone() for part in hidden_ND.split(lengths)), strict=True))
        self._teacher_TD = [found[index] for index in range(len(self.rows))]

    def share(self, *, step: int, rank: int, processes: int) -> AnchorShare:
        """The rows of this step that belong to one process: none where there are more processes than rows."""
        chosen = self._rows_of(step)
        mine = chosen[rank::processes]
        total = sum(len(self.rows[i].completion) for i in chosen)
        return AnchorShare(tuple(mine), tuple(self.rows[i] for i in mine), processes / total)

    def loss(self, causal_lm: Any, share: AnchorShare, student_NV: torch.Tensor) -> torch.Tensor:
        """weight * mean over the step's tokens of KL(teacher || new), in nats; gradients flow to `student_NV`.

        Scaled so that the mean over processes is the value of the whole step. `student_NV` are the new policy's logits
        at the positions of `share`; `causal_lm` is the model whose frozen head turns states into logits.
        """
        if not share.rows:
            return student_NV.sum() * 0.0
        softcap = getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None)
        total = student_NV.new_zeros((), dtype=torch.float32)
        lengths = [len(row.completion) for row in share.rows]
        # Row by row: buffers of a whole batch are so large that the system hands out and clears new pages every time.
        for index, row_NV in zip(share.indices, student_NV.split(lengths), strict=True):
            with torch.no_grad():
                teacher_NV = head_logits(causal_lm, self._teacher_TD[index], softcap)
            total = total + kl_sum(teacher_NV, row_NV)
        return self.weight * share.scale * total

    def _rows_of(self, step: int) -> list[int]:
        """The rows of a step: consecutive slices of reshuffled passes, the same on every process and after a resume."""
        first = step * self.rows_per_step
        chosen = []
        for position in range(first, first + self.rows_per_step):
            lap, offset = divmod(position, len(self.rows))
            order = random.Random(f"{self._seed}:{lap}").sample(range(len(self.rows)), len(self.rows))
            chosen.append(order[offset])
        return chosen


def _common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Leading tokens that all rows share, leaving each at least one of its own; 0 for a single row."""
    if len(rows) < 2:
        return 0
    low, high, limit = min(rows), max(rows), min(map(len, rows)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def kl_sum(teacher_NV: torch.Tensor, student_NV: torch.Tensor) -> torch.Tensor:
    """Sum over N of KL(teacher || student) = sum_v p_t (log p_t - log p_s), in nats, at least 0; fp32."""
    teacher_NV = torch.log_softmax(teacher_NV.float(), dim=-1)
    student_NV = torch.log_softmax(student_NV.float(), dim=-1)
    return torch.nn.functional.kl_div(student_NV, teacher_NV, log_target=True, reduction="sum")
