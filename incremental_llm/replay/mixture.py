"""How old rows are mixed into new ones: how many, which, and where they stand."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.dataset.examples import KINDS, Example, Kind
from incremental_llm.errors import NothingToTrainError
from incremental_llm.replay.buffer import DEFAULT_CAPACITY, ReplayBuffer, ReplayItem, balanced_quotas


class ReplaySettings(BaseModel):
    """How much is replayed.

    `ratio` is replay / (new + replay) of each kind; 0 turns replay off, whatever `minimum` says. `minimum` rows of a
    kind are replayed even where the ratio asks for fewer: 2 % of 16 examples protects nothing.
    `capacity` bounds what the buffer keeps of each kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ratio: float = Field(default=0.25, ge=0, lt=1, description="replay / (new + replay) of each kind; 0 is off")
    minimum: int = Field(default=16, ge=0, description="rows of a kind replayed even where the ratio asks for fewer")
    capacity: dict[Kind, Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: dict(DEFAULT_CAPACITY), description="rows of each kind that the buffer keeps"
    )

    def wanted(self, new: int) -> int:
        """Old rows of a kind wanted beside `new` new ones: max(minimum, ceil(new * ratio / (1 - ratio)))."""
        if self.ratio == 0:
            return 0
        return max(self.minimum, math.ceil(round(new * self.ratio / (1 - self.ratio), 9)))


class MixedExample(BaseModel):
    """A row of an increment's training data; `increment` is where a replayed row came from, None for a new one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: Annotated[Example, Field(discriminator="kind")]
    origin: Literal["new", "replay"]
    increment: int | None


class Realised(BaseModel):
    """What the mixture of one kind became; `share` is replay / (new + replay), None without any row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new: int
    replay: int
    wanted: int
    share: float | None
    increments: dict[int, int]


class Mixture(BaseModel):
    """New and old rows, interleaved, and the mixture as it came out for each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[MixedExample, ...]
    realised: dict[Kind, Realised]

    def of_kind(self, kind: Kind) -> tuple[MixedExample, ...]:
        """The rows of one kind, in order: replayed ones stay evenly spread."""
        return tuple(row for row in self.rows if row.example.kind == kind)

    @property
    def sentence(self) -> str:
        """The mixture in words, with every kind that got fewer old rows than it wanted."""
        replay, total = sum(r.replay for r in self.realised.values()), len(self.rows)
        if replay:
            said = f"Replay: +{replay} old rows interleaved ({100 * replay / total:.1f} % of {total})."
        else:
            said = f"Replay: no old rows among {total} new ones."
        short = [f"{k} {r.replay} of {r.wanted}" for k, r in self.realised.items() if r.replay < r.wanted]
        return said + (f" Fewer than wanted, the buffer holds no more that fit: {', '.join(short)}." if short else "")


def mix(new: Sequence[Example], buffer: ReplayBuffer, settings: ReplaySettings, seed: int) -> Mixture:
    """Interleave old rows of `buffer` into `new`, kind by kind, the same way for the same seed.

    A kind without new rows gets no old ones (its phase does not run), except SFT, which always rehearses. Old rows
    are taken in equal shares from every increment; a row that is also among the new ones is not taken twice; of
    unpaired rows the replayed downs never outnumber the replayed ups. New rows are shuffled, old rows spread evenly.

    Raises:
        NothingToTrainError: `new` is empty; rehearsing alone is no increment.
    """
    if not new:
        raise NothingToTrainError(
            "expected new examples to mix with replay, found none. There is nothing to train: wait for more feedback, "
            "and see the dataset's drop reasons for what was left out."
        )
    known = {example.id for example in new}
    placed: list[tuple[float, int, int, MixedExample]] = []
    realised: dict[Kind, Realised] = {}
    for order, kind in enumerate(KINDS):
        fresh = [MixedExample(example=e, origin="new", increment=None) for e in new if e.kind == kind]
        wanted = settings.wanted(len(fresh)) if fresh or kind == "sft" else 0
        pool = [item for item in buffer.of_kind(kind) if item.example.id not in known]
        old = _chosen(kind, pool, wanted, seed)
        realised[kind] = _realised(len(fresh), old, wanted)
        random.Random(f"{seed}:new:{kind}").shuffle(fresh)
        replayed = [MixedExample(example=i.example, origin="replay", increment=i.increment) for i in old]
        placed += _spread(fresh, order, 0) + _spread(replayed, order, 1)
    return Mixture(rows=tuple(row for *_, row in sorted(placed, key=lambda entry: entry[:3])), realised=realised)


def _chosen(kind: Kind, pool: Sequence[ReplayItem], count: int, seed: int) -> list[ReplayItem]:
    """At most `count` items of `pool`, balanced over increments, in random order."""
    if kind == "unpaired":
        ups = [item for item in pool if item.example.kind == "unpaired" and item.example.desirable]
        downs = [item for item in pool if item.example.kind == "unpaired" and not item.example.desirable]
        n_downs = min(len(downs), len(ups), count // 2)
        taken = _sample(ups, count - n_downs, f"{seed}:up") + _sample(downs, n_downs, f"{seed}:down")
    else:
        taken = _sample(pool, count, f"{seed}:{kind}")
    random.Random(f"{seed}:order:{kind}").shuffle(taken)
    return taken


def _sample(pool: Sequence[ReplayItem], count: int, seed: str) -> list[ReplayItem]:
    quotas = balanced_quotas(Counter(item.increment for item in pool), count)
    generator = random.Random(seed)
    return [
        item
        for increment, quota in quotas.items()
        for item in generator.sample([i for i in pool if i.increment == increment], quota)
    ]


def _spread(rows: Iterable[MixedExample], kind: int, origin: int) -> list[tuple[float, int, int, MixedExample]]:
    """Each row with its place in (0, 1); evenly spaced places of two groups interleave them evenly when sorted."""
    listed = list(rows)
    return [((2 * i + 1) / (2 * len(listed)), kind, origin, row) for i, row in enumerate(listed)]


def _realised(new: int, old: Sequence[ReplayItem], wanted: int) -> Realised:
    total = new + len(old)
    return Realised(
        new=new,
        replay=len(old),
        wanted=wanted,
        share=len(old) / total if total else None,
        increments=dict(sorted(Counter(item.increment for item in old).items())),
    )
