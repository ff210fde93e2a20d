"""One reply over another, as users said it: a preference is one such choice, a ranking one for each two of its replies.

A ranking of k replies gives all k(k - 1)/2 pairs, each with that part of a ranking's weight, as Ouyang et al. 2022
(InstructGPT, eq. 1) divide the loss: all of what was said is used, and a long ranking is still one opinion. Neighbours
alone would leave out the pairs that the user was surest of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from incremental_llm.dataset.batch import Batch
from incremental_llm.feedback.events import Preference, Ranking


@dataclass(frozen=True)
class Choice:
    """`user` took the reply of interaction `chosen` over that of `rejected`, as event `event` says."""

    event: str
    user: str
    chosen: str
    rejected: str
    weight: float

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected, self.event)


def choices(batch: Batch) -> Iterator[Choice]:
    """All choices of a batch, by time."""
    weights = batch.settings.weights
    for said in batch.live(Preference, Ranking):
        if isinstance(said, Preference):
            yield Choice(said.id, said.user, said.chosen, said.rejected, weights.preference)
        elif isinstance(said, Ranking):
            pairs = list(itertools.combinations(said.replies, 2))
            for better, worse in pairs:
                yield Choice(said.id, said.user, better, worse, weights.ranking / len(pairs))
