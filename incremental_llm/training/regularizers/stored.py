"""What an increment leaves beside its adapter for the next ones: its Fisher information and its logits.

Both are estimated at the end of training on the rows of that very increment, new ones and the replay sample, so no
later increment needs old data. They lie in the adapter's folder: the snapshot that holds one holds the other.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.training.batching import TokenExample
from incremental_llm.training.regularizers.ewc import (
    Fisher,
    accumulated,
    estimate_fisher,
    is_folded,
    read_fisher,
    write_fisher,
)
from incremental_llm.training.regularizers.memory import DarkLogits, dark_logits, read_dark, write_dark
from incremental_llm.training.settings import TrainingSettings


@dataclass(frozen=True)
class Stored:
    """What the recipe's terms will need; None for a term that is off."""

    fisher: Fisher | None = None
    dark: Mapping[str, DarkLogits] | None = None

    def write(self, folder: Path) -> None:
        """Write it beside an adapter."""
        if self.fisher is not None:
            write_fisher(folder, self.fisher)
        if self.dark is not None:
            write_dark(folder, self.dark)


def estimate_stored(
    model: Any,
    examples: Sequence[TokenExample],
    before: Path | None,
    settings: TrainingSettings,
    autocast: Any,
    replayed: Collection[str] = (),
    replayable: Collection[str] | None = None,
) -> Stored:
    """Estimate what the recipe's terms will need, on every process: the model may be spread over them.

    Args:
        examples: those of the increment that show what is right (no thumbs down); before: the adapter before this one.
        replayed: ids of examples that keep the logits of old, as far as they have any; of other old examples only
            those `replayable` do (all by default): what the replay buffer has let go must not live on here.
    """
    model.eval()
    told_fisher: Fisher | None = None
    told_dark: Mapping[str, DarkLogits] | None = None
    if settings.ewc.weight:
        folded = settings.growth != "continue"
        sample = _sample(examples, settings.ewc.samples, settings.seed)
        told_fisher = estimate_fisher(
            model, [example.rows[0] for example in sample], autocast, seed=settings.seed, folded=folded
        )
        earlier = read_fisher(before) if before else {}
        if earlier and is_folded(earlier) == folded:
            told_fisher = accumulated(earlier, told_fisher, settings.ewc.decay)
    if settings.dark.weight:
        old = read_dark(before) if before else {}
        kept = {name: logits for name, logits in old.items() if name in replayed}  # `replayed` has no order
        if replayable is not None:
            old = {name: logits for name, logits in old.items() if name in replayable}
        fresh = [(example.id, example.rows[0]) for example in examples if example.id not in kept]
        fresh = fresh[: settings.dark.capacity]
        newest_first = dark_logits(model, fresh, settings.dark, autocast) | kept | old
        told_dark = dict(list(newest_first.items())[: settings.dark.capacity])
    return Stored(told_fisher, told_dark)


def _sample(examples: Sequence[TokenExample], size: int, seed: int) -> list[TokenExample]:
    return random.Random(f"fisher:{seed}").sample(list(examples), min(size, len(examples)))


def stored_beside(adapter: Path) -> Stored:
    """What lies beside an adapter, to be handed on as it is; the moments of its optimizer are its own."""
    return Stored(read_fisher(adapter) or None, read_dark(adapter) or None)
