"""Events in a line each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from incremental_llm.dataset import CompiledDataset, CompileSettings, compile_dataset
from incremental_llm.feedback import Event, StoredEvent, parse_event

START = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Log:
    """A feedback log that is written a call at a time; every event is ten minutes later than the one before."""

    def __init__(self) -> None:
        self.events: list[StoredEvent] = []

    def add(self, kind: str, name: str, after: float | None = None, **fields: Any) -> str:
        """Append an event; `after` seconds after the last one, ten minutes by default."""
        last = self.events[-1].event.time if self.events else START
        assert last is not None
        time = last + timedelta(seconds=600 if after is None else after)
        obj = {"type": kind, "id": name, "time": time.isoformat(), **fields}
        self.events.append(StoredEvent(len(self.events) + 1, parse_event(obj)))
        return name

    def served(
        self, name: str, asked: str = "How long is it?", reply: str = "wrong", *, user: str = "asker", **more: Any
    ) -> str:
        messages = more.pop("messages", [{"role": "user", "content": asked}])
        conversation = more.pop("conversation", name)
        fields = {"conversation": conversation, "user": user, "messages": messages, "reply": reply, "model": "m"}
        return self.add("interaction", name, **fields, **more)

    def up(self, name: str, interaction: str, user: str = "u1") -> str:
        return self.add("thumb", name, interaction=interaction, user=user, value=1)

    def down(self, name: str, interaction: str, user: str = "u1") -> str:
        return self.add("thumb", name, interaction=interaction, user=user, value=-1)

    def corrected(self, name: str, interaction: str, content: str = "45 days", reviewer: str = "r1") -> str:
        return self.add("correction", name, interaction=interaction, reviewer=reviewer, content=content)

    def preferred(self, name: str, chosen: str, rejected: str, user: str = "u1") -> str:
        return self.add("preference", name, chosen=chosen, rejected=rejected, user=user)

    def rephrased(self, name: str, interaction: str, followup: str) -> str:
        return self.add("rephrase", name, interaction=interaction, followup=followup)

    def ranked(self, name: str, *replies: str, user: str = "u1") -> str:
        return self.add("ranking", name, replies=list(replies), user=user)

    def copied(self, name: str, interaction: str, user: str = "u1") -> str:
        return self.add("copy", name, interaction=interaction, user=user)

    def left(self, name: str, interaction: str, user: str = "u1") -> str:
        return self.add("abandon", name, interaction=interaction, user=user)

    def changed(self, name: str, *supersedes: str, reviewer: str = "boss") -> str:
        return self.add("policy_change", name, reviewer=reviewer, supersedes=list(supersedes))

    def event(self, name: str) -> Event:
        return next(stored.event for stored in self.events if stored.event.id == name)

    def compile(self, after: int = 0, **arguments: Any) -> CompiledDataset:
        """The dataset of the events after a seq, the others as context; keyword settings go to CompileSettings.

        The reviewer "boss" may change the policy unless the settings say who.
        """
        others = ("superseded", "accepted", "suite_texts", "suite_passages", "young", "rehearsed", "policy_version")
        given = {name: arguments.pop(name) for name in others if name in arguments}
        settings = CompileSettings.model_validate({"policy_reviewers": ["boss"]} | arguments)
        context = {stored.event.id: stored for stored in self.events[:after]}
        return compile_dataset(self.events[after:], settings, context=context, **given)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def new_log() -> Callable[[], Log]:
    return Log
