from __future__ import annotations

from datetime import UTC, datetime

import pytest

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError
from incremental_llm.registry import Snapshot, diff

STACK = Stack(base=BaseRef(name="tiny", digest="b", template_digest="t"))
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def first() -> Snapshot:
    return Snapshot.sealed(version=0, kind="init", time=NOW, stack=STACK)


def test_hash_is_the_json_digest_of_all_other_fields():
    snapshot = first()
    assert snapshot.hash == json_digest(snapshot.model_dump(mode="json", exclude={"hash"}))


def test_next_version_is_dense_and_chained():
    snapshot = Snapshot.after(first(), kind="increment", parent=0, time=NOW, stack=STACK.plus("a"), cursor=5)
    assert (snapshot.version, snapshot.previous_hash) == (1, first().hash)


@pytest.mark.parametrize("field", [n for n in Snapshot.model_fields if n not in ("hash", "kind", "time", "stack")])
def test_every_field_is_covered_by_the_hash(field):
    changed = {"version": 1, "parent": 1, "cursor": 1, "restores": 1}.get(field, "other")
    fields = {"version": 0, "kind": "init", "time": NOW, "stack": STACK, field: changed}
    assert Snapshot.sealed(**fields).hash != first().hash


def test_body_round_trips_and_a_changed_body_is_refused():
    snapshot = first()
    assert Snapshot.from_body(snapshot.body, snapshot.hash) == snapshot
    with pytest.raises(IntegrityError, match=r"expected hash .* found"):
        Snapshot.from_body(snapshot.body.replace('"cursor":0', '"cursor":9'), snapshot.hash)


def test_time_needs_a_zone():
    with pytest.raises(ValueError, match="timezone"):
        Snapshot.sealed(version=0, kind="init", time=NOW.replace(tzinfo=None), stack=STACK)


def test_diff_names_adapters_events_and_parts():
    before = Snapshot.after(first(), kind="increment", parent=0, time=NOW, stack=STACK.plus("a"), cursor=5, replay="r")
    after = Snapshot.after(before, kind="rollback", parent=1, restores=0, time=NOW, stack=STACK.plus("b"), cursor=2)
    change = diff(before, after)
    assert (change.added, change.removed, change.events, change.changed) == (("b",), ("a",), -3, ("replay",))
