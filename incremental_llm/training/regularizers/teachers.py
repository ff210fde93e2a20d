"""What a new policy is held to: a teacher's distributions at chosen positions, exact or by their likeliest tokens.

Shapes: N labelled positions of a row, V vocabulary, D hidden size, K likeliest tokens.

A distribution over V tokens is too large to keep (N x 49,152), the teacher's final hidden states are not (N x 576): the
head, which is frozen, turns them back into the exact distribution at every step. With a large hidden size, or to save
that product, K tokens and the rest as one outcome are kept instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from incremental_llm.training.batching import Row, length_sorted_chunks, pad_rows
from incremental_llm.training.scoring import as_memory_allows, head_logits, labelled_hidden


class Teacher(ABC):
    """The previous policy's (or the base's) distributions at the completions of `rows`."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = list(rows)

    @torch.no_grad()
    def remember(self, model: Any, autocast: Any) -> None:
        """Store what `model`, a causal language model with a labelled head, says now of every row."""
        device = next(model.parameters()).device
        found: dict[int, Any] = {}

        def take(chunk: list[int]) -> None:
            ids_BT, scored_BT = pad_rows([self.rows[i] for i in chunk])
            with autocast():
                hidden_ND = labelled_hidden(model.base_model, ids_BT.to(device), scored_BT.to(device))
                lengths = [len(self.rows[i].completion) for i in chunk]
                found.update(
                    (i, self._kept(model, part)) for i, part in zip(chunk, hidden_ND.split(lengths), strict=True)
                )

        for chunk in length_sorted_chunks(self.rows):
            as_memory_allows(chunk, take)
        self._states = [found[index] for index in range(len(self.rows))]

    @abstractmethod
    def kl_sum(self, causal_lm: Any, index: int, student_NV: torch.Tensor) -> torch.Tensor:
        """Sum over N of KL(teacher || student), in nats, at least 0; gradients flow to `student_NV`."""

    @abstractmethod
    def _kept(self, causal_lm: Any, hidden_ND: torch.Tensor) -> Any:
        """What is stored of one row."""


class ExactTeacher(Teacher):
    """Keeps hidden states: KL over the whole vocabulary."""

    def kl_sum(self, causal_lm: Any, index: int, student_NV: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_NV = _logits(causal_lm, self._states[index])
        return kl_sum(teacher_NV, student_NV)

    def _kept(self, causal_lm: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
        return hidden_ND.clone()


class TopKTeacher(Teacher):
    """Keeps the K likeliest tokens: KL over K + 1 outcomes, a lower bound of the exact one (data processing)."""

    def __init__(self, rows: Sequence[Row] = (), *, top_k: int) -> None:
        super().__init__(rows)
        self._top_k = top_k

    def kl_sum(self, causal_lm: Any, index: int, student_NV: torch.Tensor) -> torch.Tensor:
        ids_NK, logps_NK = self._states[index]
        return lumped_kl_sum(ids_NK, logps_NK, student_NV)

    def _kept(self, causal_lm: Any, hidden_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps_NV = torch.log_softmax(_logits(causal_lm, hidden_ND).float(), dim=-1)
        top = logps_NV.topk(min(self._top_k, logps_NV.shape[-1] - 1), dim=-1)
        return top.indices, top.values


def teacher_of(rows: Sequence[Row], top_k: int | None) -> Teacher:
    """An exact teacher, or one that keeps `top_k` tokens."""
    return ExactTeacher(rows) if top_k is None else TopKTeacher(rows, top_k=top_k)


def kl_sum(teacher_NV: torch.Tensor, student_NV: torch.Tensor) -> torch.Tensor:
    """Sum over N of KL(teacher || student) = sum_v p_t (log p_t - log p_s), in nats, at least 0; fp32."""
    teacher_NV = torch.log_softmax(teacher_NV.float(), dim=-1)
    student_NV = torch.log_softmax(student_NV.float(), dim=-1)
    return torch.nn.functional.kl_div(student_NV, teacher_NV, log_target=True, reduction="sum")


def lumped_kl_sum(ids_NK: torch.Tensor, logps_NK: torch.Tensor, student_NV: torch.Tensor) -> torch.Tensor:
    """`kl_sum` over the tokens `ids_NK`, of the teacher's `logps_NK` (nats), and all others as one outcome; fp32."""
    student_NV = torch.log_softmax(student_NV.float(), dim=-1)
    found_NK = student_NV.gather(-1, ids_NK)
    rest_N = student_NV.masked_fill(
        torch.zeros_like(student_NV, dtype=torch.bool).scatter_(-1, ids_NK, True), -torch.inf
    )
    student_rest_N = rest_N.logsumexp(-1)
    teacher_rest_N = torch.log1p(-logps_NK.exp().sum(-1).clamp(max=1 - 1e-7))
    top = (logps_NK.exp() * (logps_NK - found_NK)).sum()
    return top + (teacher_rest_N.exp() * (teacher_rest_N - student_rest_N)).sum()


def _logits(causal_lm: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    softcap = getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None)
    return head_logits(causal_lm, hidden_ND, softcap)
