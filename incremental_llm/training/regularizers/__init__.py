"""What keeps an increment from forgetting, besides replay: terms that are added to any objective's loss.

    regularizers = Regularizers(anchor=anchor, memory=memory, penalties=(FoldedEwc(model, fisher, weight=1.0),))
    trainer.regularizers = regularizers

Three kinds, by what they read:

* `Anchor`: rows of its own in every batch (everyday prompts), held to a teacher by KL.
* `ReplayMemory`: the replayed rows of the batch itself, held to the previous policy by KL, or to the logits of old.
* penalties (`FoldedEwc`, `DiagonalEwc`, `Orthogonality`): the adapter's factors alone; they have `name` and `loss()`.

The one design fact: every term is a scalar whose mean over processes and micro-batches is its value for the whole step.
So all combine with every objective, however a step is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from incremental_llm.training.regularizers.anchor import Anchor
from incremental_llm.training.regularizers.memory import ReplayMemory


class Penalty(Protocol):
    """A term on the adapter's own factors."""

    name: str

    def loss(self) -> torch.Tensor:
        """A scalar, at least 0."""


@dataclass(frozen=True)
class Regularizers:
    """The terms of one increment; each may be absent."""

    anchor: Anchor | None = None
    memory: ReplayMemory | None = None
    penalties: tuple[Penalty, ...] = ()
