"""The log that docs/events.md shows teaches what the page says it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incremental_llm.dataset import CompileSettings, compile_dataset
from incremental_llm.feedback import EVENT_TYPES, StoredEvent, parse_event

PAGE = Path(__file__).parents[2] / "docs" / "events.md"


@pytest.mark.parametrize("newcomers", [False, True])
def test_every_event_of_the_example_is_used_but_for_what_is_off_by_default(newcomers: bool) -> None:
    lines = PAGE.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0].splitlines()
    events = [StoredEvent(n, parse_event(json.loads(line))) for n, line in enumerate(lines, 1)]
    assert {stored.event.type for stored in events} == set(EVENT_TYPES)
    young = frozenset({"u1", "u2", "u3", "u4", "r1"}) if newcomers else frozenset()
    dataset = compile_dataset(events, CompileSettings(), young=young)
    left_out = {name: outcome for name, outcome in dataset.account.items() if outcome != "used"}
    assert left_out == {"a1": "no_weight", "n1": "not_authorised"}
    assert {source for pair in dataset.pairs for source in pair.sources} >= {"p1", "o1", "r1", "k1"}
