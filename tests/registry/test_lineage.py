from __future__ import annotations

from incremental_llm.registry import consumed, event_uses, given_back, increments_in, undone, versions_holding


def uses(**outcomes: str):
    """Events named after their user: ann1 is ann's."""
    users = {event: (event.rstrip("0123456789"),) for event in outcomes}
    return event_uses(outcomes, {event: number for number, event in enumerate(outcomes, 1)}, users)


def test_an_account_becomes_records():
    own, old = event_uses({"k1": "used"}, {"k1": 4}, {"k1": ("r2", "r1")}, replayed={"k0": ("r1",), "k1": ("r1",)})
    assert (own.event, own.seq, own.users, own.outcome) == ("k1", 4, ("r1", "r2"), "used")
    assert (old.event, old.seq, old.users, old.outcome) == ("k0", None, ("r1",), "replayed")


def test_which_adapters_saw_this_user(world):
    first = world.night(uses=uses(ann1="used", ann2="used", bob1="duplicate"))
    rejected = world.rejected(range(11, 13), adapter=first.stack.adapters[0], uses=uses(bob2="used"))
    second = world.night(uses=event_uses({"bob3": "used"}, {}, {"bob3": ["bob"]}, replayed={"ann1": ["ann"]}))
    saw_ann = world.registry.adapters_that_saw("ann")
    assert [(s.adapter, s.version, s.events) for s in saw_ann] == [
        (first.stack.adapters[0], 1, 2),
        (second.stack.adapters[1], 2, 1),
    ]
    saw_bob = world.registry.adapters_that_saw("bob")
    assert [(s.version, s.attempt) for s in saw_bob] == [(2, None), (None, rejected.id)]
    assert world.registry.adapters_that_saw("nobody") == ()


def test_an_event_is_traced_to_its_increments_and_back(world):
    world.night(uses=uses(ann1="used", bob1="personal_data"))
    world.night(uses=event_uses({}, {}, {}, replayed={"ann1": ["ann", "bob"]}))
    assert [(s.version, s.outcome) for s in world.registry.sightings("ann1")] == [(1, "used"), (2, "replayed")]
    assert [(s.version, s.outcome) for s in world.registry.sightings("bob1")] == [(1, "personal_data")]
    assert [s.event for s in world.registry.events_of("production")] == ["ann1"]
    assert [s.event for s in world.registry.events_of(1)] == ["ann1", "bob1"]


def test_events_of_no_user_are_kept(world):
    world.night(uses=event_uses({"k1": "used"}, {}, {}))
    assert [s.event for s in world.registry.events_of(1)] == ["k1"]


def test_an_attempt_recorded_twice_has_its_events_once(world):
    for _ in range(2):
        world.rejected(range(1, 3), uses=uses(ann1="used"))
    assert len(world.registry.sightings("ann1")) == 1


def test_what_a_version_carries_follows_rollbacks(world):
    world.night(events=10)
    world.night(events=10)
    world.registry.rollback(1, "x")  # 3
    world.night(events=15)  # 4
    snapshots = world.registry.list()
    assert [increments_in(snapshots, version) for version in range(5)] == [(), (1,), (2, 1), (1,), (4, 1)]
    assert undone(snapshots, 4, 2) == (4,)
    assert undone(snapshots, 4, 0) == (4, 1)
    assert undone(snapshots, 3, 2) == ()
    assert consumed(snapshots, 4) == range(11, 26)
    assert given_back(snapshots, 4, 2) == {4: (21, 22, 23, 24, 25)}
    first = snapshots[1].stack.adapters
    assert versions_holding(snapshots, first) == (1, 2, 3, 4)
