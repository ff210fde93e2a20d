"""The replay buffer: what a policy keeps of every earlier increment, within a fixed capacity."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from incremental_llm.artifacts import write_atomic
from incremental_llm.chat import canonical_json, json_digest
from incremental_llm.dataset.examples import KINDS, Example, Kind
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.replay.item import Facts, ReplayItem
from incremental_llm.replay.night import Night, age
from incremental_llm.replay.policies import POLICIES
from incremental_llm.replay.settings import DEFAULT_CAPACITY, Count, PolicyName, ReplaySettings


class ReplayBuffer(BaseModel):
    """Examples of earlier increments, as `policy` (see policies.py) chose them.

    `capacity` bounds the items of each kind; `seen[kind][increment]` is how many examples that increment offered, less
    those that have left for another reason than room.
    Items are ordered by kind, then increment, then arrival.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyName = "reservoir_balanced"
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

    def updated(
        self,
        examples: Iterable[Example],
        increment: int,
        seed: int,
        settings: ReplaySettings | None = None,
        facts: Facts | None = None,
    ) -> ReplayBuffer:
        """This buffer after `increment`, whose own new examples (not replayed ones) are `examples`.

        The buffer's own policy decides, kind by kind, with what `settings` say about it and `facts` know.

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
        seen = {kind: {**self.seen.get(kind, {}), increment: len(streams[kind])} for kind in KINDS}
        whole = self.model_copy(update={"seen": seen})
        kept = [
            item
            for kind in KINDS
            for item in POLICIES[self.policy].keep(
                [*self.of_kind(kind), *streams[kind]],
                self.capacity[kind],
                whole.night(kind, str(seed), settings, facts, taken=increment),
            )
        ]
        return ReplayBuffer(policy=self.policy, capacity=self.capacity, items=tuple(kept), seen=seen)

    def with_capacity(
        self,
        capacity: Mapping[Kind, int],
        seed: int,
        settings: ReplaySettings | None = None,
        facts: Facts | None = None,
    ) -> ReplayBuffer:
        """This buffer under another capacity; a kind that holds more shrinks as its policy has it."""
        wanted = {**self.capacity, **capacity}
        items: list[ReplayItem] = []
        for kind in KINDS:
            held, night = self.of_kind(kind), self.night(kind, str(seed), settings, facts)
            bounded = len(held) > wanted[kind] or kind in night.settings.capacity_tokens
            items += POLICIES[self.policy].keep(held, wanted[kind], night) if bounded else held
        return ReplayBuffer(policy=self.policy, capacity=wanted, items=tuple(items), seen=self.seen)

    def under(self, settings: ReplaySettings, seed: int, facts: Facts | None = None) -> ReplayBuffer:
        """This buffer as a recipe wants it from now on; what another policy has left out stays out."""
        buffer = self.model_copy(update={"policy": settings.kept_by})
        return buffer.with_capacity(settings.capacity, seed, settings, facts)

    def night(
        self,
        kind: Kind,
        seed: str,
        settings: ReplaySettings | None = None,
        facts: Facts | None = None,
        taken: int | None = None,
    ) -> Night:
        """What a policy may know of one kind of this buffer."""
        held = Counter(item.increment for item in self.of_kind(kind))
        return Night(kind, seed, settings or ReplaySettings(), self.seen.get(kind, {}), held, taken, facts or Facts())

    def map(self, change: Callable[[ReplayItem], ReplayItem]) -> ReplayBuffer:
        """This buffer with every item as `change` gives it back."""
        return self.model_copy(update={"items": tuple(map(change, self.items))})

    def without_expired(self, settings: ReplaySettings, facts: Facts, now: datetime | None) -> tuple[ReplayBuffer, int]:
        """This buffer without the items that are older than the recipe allows tonight; and how many that removed.

        The last increment is one increment old. Days count from an example's newest event to `now`, tonight's newest;
        an example whose events are in no log has no age that could be shown to be allowed, and leaves.
        """
        spans = (settings.max_increments, POLICIES[self.policy].span(settings))
        span = min((bound for bound in spans if bound is not None), default=None)
        taken_in = {increment for counts in self.seen.values() for increment in counts}
        ages = {increment: age(increment, taken_in) + 1 for increment in {item.increment for item in self.items}}

        def stays(item: ReplayItem) -> bool:
            if span is not None and ages[item.increment] > span:
                return False
            if settings.max_days is None or now is None:
                return True
            time = facts.time(item.example)
            return time is not None and (now - time).total_seconds() <= settings.max_days * 86_400

        return self._where(stays)

    def without(self, superseded: Collection[str]) -> tuple[ReplayBuffer, int]:
        """This buffer without any item that has one of these event ids among its sources, and how many that removed."""
        gone = frozenset(superseded)
        return self._where(lambda item: gone.isdisjoint(item.example.sources))

    def without_contradicted(self, contradicts: Callable[[Example], bool]) -> tuple[ReplayBuffer, int]:
        """This buffer without the items whose verdict has been turned since; and how many that removed."""
        return self._where(lambda item: not contradicts(item.example))

    def without_questions(self, stands: Callable[[str], bool]) -> tuple[ReplayBuffer, int]:
        """This buffer without the items that ask what `stands` holds of, such as a suite's question; and how many."""
        return self._where(
            lambda item: not any(stands(message.content) for message in item.example.prompt if message.role == "user")
        )

    def _where(self, stays: Callable[[ReplayItem], bool]) -> tuple[ReplayBuffer, int]:
        """This buffer without the items that must not stay; and how many that removed.

        As large a share of the increment's other examples counts as never offered: what leaves for want of truth or
        time must not look as if it had left for want of room.
        """
        items = tuple(item for item in self.items if stays(item))
        if len(items) == len(self.items):
            return self, 0
        changed = self.model_copy(update={"items": items})
        before, after, seen = self.counts(), changed.counts(), {kind: dict(n) for kind, n in self.seen.items()}
        for kind, offered in seen.items():
            for increment, held in before[kind].items():
                left = after[kind].get(increment, 0)
                if left < held and increment in offered:
                    offered[increment] = max(left, round(offered[increment] * left / held))
        return changed.model_copy(update={"seen": seen}), len(self.items) - len(items)

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
