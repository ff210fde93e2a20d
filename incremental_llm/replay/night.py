"""What a policy may know besides the items, and the shapes of the functions that it is made of."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from incremental_llm.dataset.examples import Kind
from incremental_llm.replay.item import Facts, ReplayItem
from incremental_llm.replay.settings import ReplaySettings


@dataclass(frozen=True)
class Night:
    """What a policy may know besides the items, which are all of one kind.

    `seen[i]` is how many examples increment i offered, `held[i]` how many of them the buffer holds; `taken` is the
    increment that is being taken in, None where nothing is. `seed` is the whole seed of a draw, and the beginning of
    those of `generator`.
    """

    kind: Kind
    seed: str
    settings: ReplaySettings = field(default_factory=ReplaySettings)
    seen: Mapping[int, int] = field(default_factory=dict)
    held: Mapping[int, int] = field(default_factory=dict)
    taken: int | None = None
    facts: Facts = field(default_factory=Facts)

    def age(self, increment: int) -> int:
        """How many increments have been taken in since that one."""
        return age(increment, self.seen)

    def tonights(self) -> random.Random:
        """A generator for tonight's draw: one seed for all nights would draw the same places of a full buffer."""
        return random.Random(f"{self.seed}:{max(self.seen, default=0)}")

    def generator(self, *why: int | str) -> random.Random:
        """A generator of its own for each decision, so that one kind's examples never change what another keeps."""
        return random.Random(":".join(map(str, (self.seed, *why))))


def age(increment: int, seen: Iterable[int]) -> int:
    """How many of the increments `seen` are newer than this one.

    >>> age(2, [1, 2, 4, 7])
    2
    """
    increments = sorted(seen)
    return len(increments) - bisect_right(increments, increment)


def ticket(generator: random.Random) -> float:
    """Uniform in (0, 1), both ends excluded: their logarithms would be infinite."""
    return (generator.getrandbits(52) + 0.5) / 2**52


Order = Callable[[Sequence[ReplayItem], Night], Sequence[ReplayItem]]
Choice = Callable[[Sequence[ReplayItem], int, Night], list[ReplayItem]]
LogWeights = Callable[[Sequence[ReplayItem], Night], list[float]]
