"""Objects that were erased: readers get what stands in their place, and verify accepts no other gap."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from incremental_llm.errors import InputError, IntegrityError, PendingErasureError, PreconditionFailed
from incremental_llm.feedback.pseudonyms import Pseudonyms, Renames
from incremental_llm.registry import Erasure, EventUse, adapters_holding
from incremental_llm.registry.objects import Tombstone

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def erasure(world, **changes: object) -> Erasure:
    fields = {"id": "e1", "person": "erased-1", "begun": NOW, "status": "erased", **changes}
    made = Erasure(**fields)
    world.registry.erasing().record(made)
    return made


def test_readers_get_the_object_in_its_place_and_the_chain_holds(world):
    old = world.registry.put_json([{"said": "a secret"}])
    version = world.night(corrections=old)
    erasing = world.registry.erasing()
    erasing.replace(old, world.registry.put_json([]), "e1")
    assert world.registry.get_json(old) == [] and world.registry.get(1) == version
    assert world.registry.verify() == []
    erasing.replace(world.registry.put_json([]), world.registry.put_json([1]), "e2")
    assert world.registry.get_json(old) == [1] and world.registry.verify() == []
    assert world.registry.erased_parts() == {1: "erased parts (corrections): goes on with what is left of them"}
    assert not any(b"a secret" in path.read_bytes() for path in world.registry.objects.glob("*.json"))
    for again in ([{"said": "a secret"}], []):
        with pytest.raises(IntegrityError, match=r"it was erased with a person .* and comes again"):
            world.registry.put_json(again)


@pytest.mark.parametrize("step", ["replacement recorded", "tombstone written"])
def test_a_replacement_that_was_cut_short_is_ended(world, step: str):
    old = world.registry.put_json({"said": "a secret"})
    world.night(report=old)
    erasure(world)

    def killed(name: str) -> None:
        if name == step:
            raise OSError(step)

    with pytest.raises(OSError, match=step):
        world.open(failpoint=killed).erasing().replace(old, None, "e1")
    assert "still lies" in " ".join(map(str, world.registry.verify()))
    world.registry.erasing().go_on()
    assert world.registry.verify() == []
    assert not any(b"a secret" in path.read_bytes() for path in world.registry.objects.glob("*.json"))


def test_what_has_nothing_in_its_place_says_so(world):
    old = world.registry.put_json({"a": 1})
    world.night(report=old)
    world.registry.erasing().replace(old, None, "e1")
    assert world.registry.verify() == []
    with pytest.raises(IntegrityError, match=r"erased with a person .erasure e1.*cannot be restored"):
        world.registry.get_json(old)


def test_a_gap_that_no_erasure_made_is_a_problem(world):
    old, other = world.registry.put_json({"a": 1}), world.registry.put_json({"b": 1})
    world.night(report=old)
    (world.registry.objects / f"{old}.json").unlink()
    assert "expected it in" in str(world.registry.verify()[0])
    stone = world.registry.objects / f"{old}.erased.json"
    stone.write_text(json.dumps({"erasure": "forged", "successor": other}), encoding="utf-8")
    assert "which the registry has no record of" in str(world.registry.verify()[0])
    stone.write_text("{}", encoding="utf-8")
    assert "expected a tombstone" in str(world.registry.verify()[0])
    world.registry.erasing().replace(old, other, "e1")
    assert world.registry.verify() == []
    (world.registry.objects / f"{other}.json").write_text('{"b":2}', encoding="utf-8")
    assert "expected digest" in str(world.registry.verify()[0])
    stone.write_text(json.dumps({"erasure": "e1", "successor": None}), encoding="utf-8")
    assert "which the registry has no record of" in str(world.registry.verify()[0])


def test_an_interrupted_erasure_is_a_problem(world):
    erasure(world, status="pending")
    version = world.night().version
    assert "begun 2026-11-28 00:00 and not ended: it goes on with illm feedback erase" in str(
        world.registry.verify()[0]
    )
    for refused in (world.registry.refuse_pending, lambda: world.registry.promote(version)):
        with pytest.raises(PendingErasureError, match=r"found e1, begun .* illm feedback erase --user NAME --yes"):
            refused()
    erasure(world)
    world.registry.refuse_pending()
    assert world.registry.verify() == [] and [one.status for one in world.registry.erasures()] == ["erased"]


def test_no_ref_that_serves_moves_to_what_saw_them(world):
    first, second, third = world.night(), world.night(), world.night()
    erasure(world, adapters=(second.stack.adapters[-1],), versions=(2, 3))
    for move in (
        lambda: world.registry.promote(2),
        lambda: world.registry.promote(3, ref="canary"),
        lambda: world.registry.rollback(2, "back"),
    ):
        with pytest.raises(PreconditionFailed, match=r"which erasure e1 concerns.*a version before 2"):
            move()
    assert world.night().parent == third.version  # nights go on, until the rebuild is done
    assert "cannot be restored" in world.registry.erased_parts()[2]
    assert world.registry.rollback(1, "at once").stack == first.stack


def test_a_line_goes_on_beside_production(world):
    base, first = world.registry.head(), world.night()
    with pytest.raises(InputError, match="expected a ref that serves nobody"):
        world.registry.begin_line("production", 0, "x")
    world.registry.begin_line("rebuild", 0, "again")
    stack = world.candidate(base, "made again")
    wanted = {"parent": 0, "stack": stack, "cursor": 5, "decision": world.decision(stack)}
    with pytest.raises(PreconditionFailed, match="expected production to be version 0, found version 1"):
        world.registry.commit_increment(**wanted)
    made = world.registry.commit_increment(**wanted, line="rebuild")
    assert world.registry.refs() == {"production": first.version, "rebuild": made.version}
    with pytest.raises(PreconditionFailed, match="expected rebuild to be version 0, found version 2"):
        world.registry.commit_increment(**wanted, line="rebuild")
    assert world.registry.promote(2, expected=1).stack == stack and world.registry.verify() == []


def test_rows_lose_the_names_and_keep_their_counts(world):
    uses = [
        EventUse(event="k1", seq=1, users=("u1", "r1"), outcome="used"),
        EventUse(event="k2", seq=2, users=("u2",), outcome="duplicate"),
        EventUse(event="k12", seq=3, users=("u1",), outcome="replayed"),
    ]
    world.night(uses=uses)
    stack = world.candidate(world.registry.head())
    adapter = stack.adapters[-1]
    decision = world.decision(stack, passed=False)
    refused = {"parent": 1, "seqs": [1], "reason": "lost: k1, k12, by 'u1'", "adapter": adapter, "uses": uses[:1]}
    world.registry.record_attempt(**refused, decision=decision)
    names = Renames({"u1", "k1"}, Pseudonyms(b"k"))
    of, erasing = names.pseudonyms.of, world.registry.erasing()
    first = erasing.seen({"k1"}, "u1", names)
    assert (first.had, first.trained, len(first.attempts)) == ({1}, {1}, 1)
    assert first.adapters == {adapter, world.registry.get(1).stack.adapters[-1]}
    for _ in range(2):
        erasing.rename("u1", ["k1"], names)
        assert erasing.seen({"k1"}, "u1", names) == first
        assert [s.outcome for s in world.registry.sightings(of("k1"))] == ["used", "used"]
        assert world.registry.sightings("k1") == () and len(world.registry.sightings("k12")) == 1
        assert world.registry.adapters_that_saw("u1") == () and world.registry.adapters_that_saw("r1") != ()
        assert world.registry.attempts()[0].reason == f"lost: {of('k1')}, k12, by '{of('u1')}'"
    erasing.compact()
    for path in (world.root / "registry").glob("registry.db*"):
        assert b"k1\x00" not in path.read_bytes() and b"by 'u1" not in path.read_bytes()


def test_what_took_the_place_of_an_adapter_holds_what_it_held(world):
    first, second = world.night(), world.night()
    merged = world.candidate(second)
    stack = second.stack.plus(merged.adapters[-1], 2)
    third = world.registry.commit_increment(
        parent=2, stack=stack, cursor=30, decision=world.decision(stack), replaces=2
    )
    snapshots = world.registry.list()
    assert adapters_holding(snapshots, first.stack.adapters) == {*first.stack.adapters, *third.stack.adapters}
    assert adapters_holding(snapshots, first.stack.adapters, retrained=[3]) == set(first.stack.adapters)


def test_a_tombstone_is_read_as_it_was_written(world):
    digest = world.registry.put_json({"a": 1})
    world.registry.erasing().replace(digest, None, "e1")
    assert world.registry.erasing().objects.tombstone(digest) == Tombstone("e1", None)
    with world.registry._engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM erased_objects")).scalar() == 1
