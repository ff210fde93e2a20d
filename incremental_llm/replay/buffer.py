"""The replay buffer: a uniform sample of every earlier increment, in equal shares, within a fixed capacity."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from incremental_llm.artifacts import write_atomic
from incremental_llm.chat import canonical_json, json_digest
from incremental_llm.dataset.examples import KINDS, Example, Kind
from incremental_llm.errors import InputError, IntegrityError

DEFAULT_CAPACITY: Mapping[Kind, int] = {"sft": 2000, "pair": 2000, "unpaired": 4000}

Count = Annotated[int, Field(ge=0)]
T = TypeVar("T")


class ReplayItem(BaseModel):
    """One kept example and the increment it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: Annotated[Example, Field(discriminator="kind")]
    increment: int


class ReplayBuffer(BaseModel):
    """Examples of earlier increments; every example of one increment had the same chance to be here.

    `capacity` bounds the items of each kind; `seen[kind][increment]` is how many examples that increment offered.
    Items are ordered by kind, then increment, then arrival.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["reservoir_balanced"] = "reservoir_balanced"
    capacity: dict[Kind, Count] = Field(default_factory=lambda: dict(DEFAULT_CAPACITY))
    items: tuple[ReplayItem, ...] = ()
    seen: dict[Kind, dict[int, Count]] = Field(default_factory=dict)

    @field_validator("capacity")
    @classmethod
    def _every_kind(cls, capacity: dict[Kind, int]) -> dict[Kind, int]:
        return {**DEFAULT_CAPACITY, **capacity}

    @model_validator(mode="after")
    def _within_capacity(self) -> Self:
        for kind, held in Counter(item.example.kind for item in self.items).items():
            if held > self.capacity[kind]:
                raise ValueError(f"{held} items of kind {kind!r} exceed the capacity of {self.capacity[kind]}")
        return self

    @property
    def digest(self) -> str:
        """Equal for equal policy, capacity, items in equal order, and counts."""
        return json_digest(self.model_dump(mode="json"))

    def of_kind(self, kind: Kind) -> tuple[ReplayItem, ...]:
        """The items of one kind, oldest increment first."""
        return tuple(item for item in self.items if item.example.kind == kind)

    def counts(self) -> dict[Kind, dict[int, int]]:
        """Items held, by kind and increment; increments that hold none are absent."""
        return {kind: dict(sorted(Counter(i.increment for i in self.of_kind(kind)).items())) for kind in KINDS}

    def updated(self, examples: Iterable[Example], increment: int, seed: int) -> ReplayBuffer:
        """This buffer after `increment`, whose own new examples (not replayed ones) are `examples`.

        Each kind's capacity is shared equally between the increments that have examples of it (`balanced_quotas`): the
        new one is sampled by reservoir (Vitter 1985, algorithm R), older ones shrink uniformly at random.

        Raises:
            InputError: `increment` was taken in already, or is older than one that was.
        """
        latest = max((old for counts in self.seen.values() for old in counts), default=None)
        if latest is not None and increment <= latest:
            raise InputError(
                f"replay: expected an increment after {latest}, found {increment}. "
                "Each increment is taken in once, in order: start from the buffer of the snapshot before it."
            )
        streams: dict[Kind, list[ReplayItem]] = {kind: [] for kind in KINDS}
        for example in examples:
            streams[example.kind].append(ReplayItem(example=example, increment=increment))
        kept = [item for kind in KINDS for item in self._balanced(kind, streams[kind], increment, seed)]
        seen = {kind: {**self.seen.get(kind, {}), increment: len(streams[kind])} for kind in KINDS}
        return ReplayBuffer(policy=self.policy, capacity=self.capacity, items=tuple(kept), seen=seen)

    def with_capacity(self, capacity: Mapping[Kind, int], seed: int) -> ReplayBuffer:
        """This buffer under another capacity; a smaller one shrinks every increment to its equal share at random."""
        wanted = {**self.capacity, **capacity}
        items: list[ReplayItem] = []
        for kind in KINDS:
            by_increment = _by_increment(self.of_kind(kind))
            quotas = balanced_quotas({i: len(held) for i, held in by_increment.items()}, wanted[kind])
            for i, held in by_increment.items():
                items += _subset(held, quotas[i], _generator(seed, "capacity", kind, i))
        return ReplayBuffer(policy=self.policy, capacity=wanted, items=tuple(items), seen=self.seen)

    def without(self, superseded: Collection[str]) -> tuple[ReplayBuffer, int]:
        """This buffer without any item that has one of these event ids among its sources, and how many that removed."""
        gone = frozenset(superseded)
        items = tuple(item for item in self.items if gone.isdisjoint(item.example.sources))
        return self.model_copy(update={"items": items}), len(self.items) - len(items)

    def without_contradicted(self, contradicts: Callable[[Example], bool]) -> tuple[ReplayBuffer, int]:
        """This buffer without the items whose verdict has been turned since; and how many that removed."""
        items = tuple(item for item in self.items if not contradicts(item.example))
        return self.model_copy(update={"items": items}), len(self.items) - len(items)

    def without_questions(self, stands: Callable[[str], bool]) -> tuple[ReplayBuffer, int]:
        """This buffer without the items that ask what `stands` holds of, such as a suite's question; and how many."""
        items = tuple(
            item
            for item in self.items
            if not any(stands(message.content) for message in item.example.prompt if message.role == "user")
        )
        return self.model_copy(update={"items": items}), len(self.items) - len(items)

    def to_json(self) -> str:
        """Canonical JSON; `from_json(text).to_json() == text`, bit for bit."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> ReplayBuffer:
        """The buffer that `to_json` wrote; raises IntegrityError where `text` is not one."""
        try:
            return cls.model_validate(json.loads(text))
        except (ValueError, ValidationError) as error:
            raise IntegrityError(
                f"expected a replay buffer as JSON, found something else ({error}). "
                "The file is damaged or of another version: restore it from a copy, or roll back."
            ) from error

    def write(self, path: Path) -> None:
        """Write `to_json` atomically."""
        write_atomic(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> ReplayBuffer:
        """The buffer in `path`; raises InputError for a missing file, IntegrityError for a damaged one."""
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise InputError(f"{path}: expected a replay buffer, found no readable file ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{path}: expected UTF-8 JSON, found other bytes ({error}).") from error
        return cls.from_json(text)

    def _balanced(self, kind: Kind, stream: Sequence[ReplayItem], increment: int, seed: int) -> list[ReplayItem]:
        older = _by_increment(self.of_kind(kind))
        sizes = {i: len(held) for i, held in older.items()} | ({increment: len(stream)} if stream else {})
        quotas = balanced_quotas(sizes, self.capacity[kind])
        kept: list[ReplayItem] = []
        for i, held in older.items():
            kept += _subset(held, quotas[i], _generator(seed, "shrink", kind, increment, i))
        if stream:
            kept += _reservoir(stream, quotas[increment], _generator(seed, "reservoir", kind, increment))
        return kept


def balanced_quotas(sizes: Mapping[int, int], capacity: int) -> dict[int, int]:
    """Split `capacity` over increments: equal shares, what a small increment leaves goes to the others.

    Shares differ by at most one except where an increment has fewer; the odd places go to the newest.

    >>> balanced_quotas({1: 100, 2: 3, 3: 100}, 20)
    {1: 8, 2: 3, 3: 9}
    """
    room, level = capacity, max(sizes.values(), default=0)
    for below, size in enumerate(sorted(sizes.values())):
        share = room // (len(sizes) - below)
        if size > share:
            level = share
            break
        room -= size
    quotas = {increment: min(size, level) for increment, size in sizes.items()}
    odd = capacity - sum(quotas.values())
    for increment in sorted((i for i, size in sizes.items() if size > level), reverse=True)[:odd]:
        quotas[increment] += 1
    return dict(sorted(quotas.items()))


def _reservoir(stream: Sequence[T], size: int, generator: random.Random) -> list[T]:
    """Vitter 1985, algorithm R: each element of `stream` is kept with probability size / len(stream); arrival order."""
    kept = list(range(min(size, len(stream))))
    for position in range(size, len(stream)):
        slot = generator.randrange(position + 1)
        if slot < size:
            kept[slot] = position
    return [stream[position] for position in sorted(kept)]


def _subset(items: Sequence[T], size: int, generator: random.Random) -> list[T]:
    """`size` of `items` uniformly at random, in their order."""
    if size >= len(items):
        return list(items)
    return [items[position] for position in sorted(generator.sample(range(len(items)), size))]


def _by_increment(items: Iterable[ReplayItem]) -> dict[int, list[ReplayItem]]:
    grouped: dict[int, list[ReplayItem]] = {}
    for item in items:
        grouped.setdefault(item.increment, []).append(item)
    return dict(sorted(grouped.items()))


def _generator(*seed: int | str) -> random.Random:
    """A generator of its own for each decision, so that one kind's examples never change what another kind keeps."""
    return random.Random(":".join(map(str, seed)))
