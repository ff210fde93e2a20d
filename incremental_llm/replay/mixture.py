"""How old rows are mixed into new ones: how many, which, and where they stand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.dataset.examples import KINDS, Example, Kind
from incremental_llm.errors import NothingToTrainError
from incremental_llm.replay.buffer import ReplayBuffer
from incremental_llm.replay.item import Facts, ReplayItem, absent
from incremental_llm.replay.policies import POLICIES
from incremental_llm.replay.settings import ReplaySettings


class MixedExample(BaseModel):
    """A row of an increment's training data; `increment` is where a replayed row came from, None for a new one.

    `epochs` are those that a rotating row is seen in, counted from 0; None: every one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: Annotated[Example, Field(discriminator="kind")]
    origin: Literal["new", "replay"]
    increment: int | None
    epochs: tuple[int, ...] | None = Field(None, exclude_if=absent)


class Realised(BaseModel):
    """What the mixture of one kind became.

    Of the `replay` old rows an epoch takes `an_epoch`, where `wanted` were asked for; `share` is an_epoch / (new +
    an_epoch), None without any row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    new: int
    replay: int
    an_epoch: int
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
    def turns(self) -> dict[Kind, tuple[tuple[str, ...], ...]]:
        """The ids of the old rows of each epoch, for each kind whose old rows rotate."""
        found: dict[Kind, tuple[tuple[str, ...], ...]] = {}
        for kind in self.realised:
            rows = [(row.example.id, row.epochs) for row in self.of_kind(kind) if row.epochs is not None]
            last = max((epoch for _, epochs in rows for epoch in epochs), default=-1)
            if last >= 0:
                found[kind] = tuple(
                    tuple(name for name, epochs in rows if epoch in epochs) for epoch in range(last + 1)
                )
        return found

    @property
    def sentence(self) -> str:
        """The mixture in words, with every kind that got fewer old rows than it wanted."""
        found = self.realised.values()
        new, drawn, taken = (
            sum(counts) for counts in zip(*((r.new, r.replay, r.an_epoch) for r in found), strict=True)
        )
        share = f"{100 * taken / max(1, new + taken):.1f} % of {new + taken}"
        if not drawn:
            said = f"Replay: no old rows among {new} new ones."
        elif drawn == taken:
            said = f"Replay: +{drawn} old rows interleaved ({share})."
        else:
            said = f"Replay: +{taken} old rows an epoch ({share}), {drawn} of them in turn."
        short = [f"{k} {r.an_epoch} of {r.wanted}" for k, r in self.realised.items() if r.an_epoch < r.wanted]
        return said + (f" Fewer than wanted, the buffer holds no more that fit: {', '.join(short)}." if short else "")


def mix(
    new: Sequence[Example],
    buffer: ReplayBuffer,
    settings: ReplaySettings,
    seed: int,
    facts: Facts | None = None,
    passes: Callable[[Kind, int], float] = lambda kind, rows: 1,
) -> Mixture:
    """Interleave old rows of `buffer` into `new`, kind by kind, the same way for the same seed.

    `passes` gives the epochs over so many rows of a kind. Where old rows rotate, each epoch has a draw of its own: a
    model that sees many old rows a little forgets less than one that learns few by heart. What the policy prefers is
    drawn in more epochs.

    A kind without new rows gets no old ones (its phase does not run), except SFT, which always rehearses. Old rows
    are drawn by the recipe's policy; a row that is also among the new ones is not taken twice; of unpaired rows the
    replayed downs outweigh the replayed ups neither in number nor in weight, a balance of the whole draw, so these do
    not rotate. New rows are shuffled, old rows spread evenly.

    Raises:
        NothingToTrainError: `new` is empty; rehearsing alone is no increment.
    """
    if not new:
        raise NothingToTrainError(
            "expected new examples to mix with replay, found none. There is nothing to train: wait for more feedback, "
            "and see the dataset's drop reasons for what was left out."
        )
    policy = POLICIES[settings.kept_by]
    known = {example.id for example in new}
    placed: list[tuple[float, int, int, MixedExample]] = []
    realised: dict[Kind, Realised] = {}
    for order, kind in enumerate(KINDS):
        fresh = [MixedExample(example=e, origin="new", increment=None) for e in new if e.kind == kind]
        wanted = settings.wanted(len(fresh)) if kind in policy.kinds and (fresh or kind == "sft") else 0
        held = {item.example.id: item for item in buffer.of_kind(kind)}  # what two nights taught stands here once
        pool = [item for name, item in held.items() if name not in known]

        def draw(pool: Sequence[ReplayItem], count: int, seed: str, kind: Kind = kind) -> list[ReplayItem]:
            return policy.draw(pool, count, buffer.night(kind, seed, settings, facts))

        epochs = ceil(passes(kind, len(fresh) + wanted)) if settings.rotate and kind != "unpaired" else 1
        draws = [
            _chosen(kind, pool, wanted, f"{seed}:{epoch}" if epoch else str(seed), draw)
            for epoch in range(max(1, epochs))
        ]
        replayed = _in_epochs(draws)
        realised[kind] = _realised(len(fresh), replayed, len(draws[0]), wanted)
        random.Random(f"{seed}:new:{kind}").shuffle(fresh)
        placed += _spread(fresh, order, 0) + _spread(replayed, order, 1)
    return Mixture(rows=tuple(row for *_, row in sorted(placed, key=lambda entry: entry[:3])), realised=realised)


Draw = Callable[[Sequence[ReplayItem], int, str], list[ReplayItem]]


def _chosen(kind: Kind, pool: Sequence[ReplayItem], count: int, seed: str, draw: Draw) -> list[ReplayItem]:
    """At most `count` items of `pool`, as the policy draws them, in random order."""
    if kind == "unpaired":
        ups = [item for item in pool if item.example.kind == "unpaired" and item.example.desirable]
        downs = [item for item in pool if item.example.kind == "unpaired" and not item.example.desirable]
        n_downs = min(len(downs), len(ups), count // 2)
        taken = draw(ups, count - n_downs, f"{seed}:up")
        taken += _within_weight(draw(downs, n_downs, f"{seed}:down"), taken, seed)
    else:
        taken = draw(pool, count, f"{seed}:{kind}")
    random.Random(f"{seed}:order:{kind}").shuffle(taken)
    return taken


def _in_epochs(draws: Sequence[Sequence[ReplayItem]]) -> list[MixedExample]:
    """The rows of one draw an epoch, each once and with its epochs; without these where all draws are the same rows."""
    epochs: dict[str, list[int]] = {}
    items: dict[str, ReplayItem] = {}
    for epoch, drawn in enumerate(draws):
        for item in drawn:
            items[item.example.id] = item
            epochs.setdefault(item.example.id, []).append(epoch)
    rotate = any(len(seen) < len(draws) for seen in epochs.values())
    return [
        MixedExample(
            example=item.example,
            origin="replay",
            increment=item.increment,
            epochs=tuple(epochs[name]) if rotate else None,
        )
        for name, item in items.items()
    ]


def _within_weight(downs: list[ReplayItem], ups: Sequence[ReplayItem], seed: str) -> list[ReplayItem]:
    """The downs, or as many of them at random as weigh no more than the ups."""
    room = sum(item.example.weight for item in ups)
    if sum(item.example.weight for item in downs) <= room:
        return downs
    random.Random(f"{seed}:weight").shuffle(downs)
    kept, held = [], 0.0
    for item in downs:
        if held + item.example.weight <= room:
            held += item.example.weight
            kept.append(item)
    return kept


def _spread(rows: Iterable[MixedExample], kind: int, origin: int) -> list[tuple[float, int, int, MixedExample]]:
    """Each row with its place in (0, 1); evenly spaced places of two groups interleave them evenly when sorted."""
    listed = list(rows)
    return [((2 * i + 1) / (2 * len(listed)), kind, origin, row) for i, row in enumerate(listed)]


def _realised(new: int, old: Sequence[MixedExample], taken: int, wanted: int) -> Realised:
    return Realised(
        new=new,
        replay=len(old),
        an_epoch=taken,
        wanted=wanted,
        share=taken / (new + taken) if new + taken else None,
        increments=dict(sorted(Counter(item.increment for item in old).items())),
    )
