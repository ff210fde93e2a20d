"""The queue: in once, one claim at a time, one decision each, and events in the same transaction."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.chat import json_digest
from incremental_llm.errors import IntegrityError
from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.review import NotYoursError, ReviewError, ReviewQueue, ReviewSettings, UnknownItemError

VERDICTS = ("accept", "reject", "correct", "skip")


def test_filling_twice_adds_nothing_but_further_authors(world) -> None:
    item = world.put("i1")
    proposal = world.queue.get(item).proposal
    assert world.queue.add([proposal, proposal]) == 0
    assert world.queue.add([proposal.model_copy(update={"authors": ("r1",)})]) == 0
    assert [one.id for one in world.queue.items()] == [item]
    with pytest.raises(NotYoursError, match="'r1', who said some of it"):
        world.queue.claim(item, "r1")


def test_the_most_urgent_comes_first_and_nobody_gets_what_another_holds(world) -> None:
    low, high = world.put("i1", priority=0.2), world.put("i2", priority=0.9)
    assert world.queue.next("r1").item.id == high
    assert world.queue.next("r2").item.id == low
    assert world.queue.next("r3") is None
    assert world.queue.next("r1").item.id == high  # what is held comes again
    assert world.queue.counts() == {"open": 0, "claimed": 2, "waiting": 0, "done": 0}
    with pytest.raises(NotYoursError, match="'r1' holds it"):
        world.queue.claim(high, "r2")


def test_what_is_passed_over_is_offered_to_others(world) -> None:
    first, second = world.put("i1", priority=0.9), world.put("i2", priority=0.2)
    assert world.queue.next("r1").item.id == first
    world.queue.release(first, "r1")
    assert world.queue.next("r1", but=[first]).item.id == second
    assert world.queue.next("r2").item.id == first


def test_an_abandoned_claim_returns_and_its_decision_comes_too_late(world) -> None:
    item = world.put()
    world.queue.claim(item, "r1")
    world.later(899)
    world.queue.claim(item, "r1")  # holds it for longer
    world.later(899)
    with pytest.raises(NotYoursError, match="'r1' holds it"):
        world.queue.claim(item, "r2")
    world.later(1)
    assert world.queue.next("r2").item.id == item
    with pytest.raises(NotYoursError):
        world.queue.decide(item, "r1", "accept")
    assert world.events() == []


def test_a_decision_needs_a_claim_that_is_alive(world) -> None:
    item = world.put()
    with pytest.raises(NotYoursError, match="none, or one that has run out"):
        world.queue.decide(item, "r1", "accept")
    world.queue.claim(item, "r1")
    world.later(900)
    with pytest.raises(NotYoursError, match="Claim it again; nothing was changed"):
        world.queue.decide(item, "r1", "accept")
    assert world.queue.decisions() == []


def test_each_reviewer_decides_once_and_the_same_again_is_answered_again(world) -> None:
    item = world.put(kind="safety")
    assert world.decide(item, "r1", "reject").state == "waiting"
    assert world.queue.decide(item, "r1", "reject").state == "waiting"
    with pytest.raises(NotYoursError, match="another, which stands"):
        world.queue.decide(item, "r1", "accept")
    with pytest.raises(NotYoursError, match="another, which stands"):
        world.queue.claim(item, "r1")
    assert [(one.reviewer, one.verdict) for one in world.queue.decisions()] == [("r1", "reject")]


def test_a_skip_leaves_it_to_others(world) -> None:
    item = world.put()
    assert world.decide(item, "r1", "skip").state == "open"
    assert world.queue.next("r1") is None
    assert world.decide(item, "r2", "accept").state == "done"
    assert world.queue.next("r3") is None
    with pytest.raises(NotYoursError, match="that it is decided"):
        world.queue.claim(item, "r3")


def test_seconds_count_from_the_first_claim(world) -> None:
    item = world.put()
    world.queue.claim(item, "r1")
    world.later(100)
    world.queue.claim(item, "r1")
    world.later(20)
    world.queue.decide(item, "r1", "accept")
    assert world.queue.decisions()[0].seconds == 120


@pytest.mark.parametrize(
    ("verdict", "content", "found"),
    [
        ("maybe", None, "'maybe'"),
        ("accept", "text", "no text with accept, found one"),
        ("correct", None, "the right reply with correct, found none"),
        ("correct", " \n", "the right reply with correct, found none"),
        ("correct", "\ud800", "half of a surrogate pair"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(world, verdict: Any, content: Any, found: str) -> None:
    item = world.put()
    world.queue.claim(item, "r1")
    with pytest.raises(ReviewError, match=found):
        world.queue.decide(item, "r1", verdict, content)
    assert world.queue.decisions() == []


def test_an_unknown_item_and_a_reviewer_without_a_name(world) -> None:
    with pytest.raises(UnknownItemError, match="found 'nothing'"):
        world.queue.claim("nothing", "r1")
    with pytest.raises(ReviewError, match="a reviewer of 1 to 200 printable characters"):
        world.queue.next(" ")


@pytest.mark.parametrize("name", ["", " anna", "anna ", "a\nb", "\x00", "\ud800", "x" * 201])
def test_a_name_that_is_none_or_could_be_taken_for_another_is_refused(world, name: str) -> None:
    item = world.put()
    for work in (
        lambda: world.queue.next(name),
        lambda: world.queue.claim(item, name),
        lambda: world.queue.release(item, name),
        lambda: world.queue.decide(item, name, "accept"),
    ):
        with pytest.raises(ReviewError, match="printable characters without spaces around"):
            work()


@pytest.mark.parametrize("name", ["\ud800", "\x00", "x" * 32, ""])
def test_what_can_be_no_id_reaches_no_database(world, name: str) -> None:
    item = world.put()
    for work in (world.queue.get, lambda n: world.queue.claim(n, "r1"), lambda n: world.queue.release(n, "r1")):
        with pytest.raises(UnknownItemError, match="the id of a review item"):
            work(name)
    assert world.queue.next("r1", but=[name]).item.id == item


def test_two_people_have_to_say_the_same(world) -> None:
    item = world.put(kind="safety")
    assert world.decide(item, "r1", "correct", "Please ask a doctor!").state == "waiting"
    assert world.events() == []
    assert world.decide(item, "r2", "correct", "Ask a nurse.").state == "waiting"
    assert world.events() == []
    done = world.decide(item, "r3", "correct", "ask a doctor")
    assert done.state == "done"
    assert {(event.reviewer, event.content) for event in world.events()} == {
        ("r1", "Please ask a doctor!"),
        ("r3", "ask a doctor"),
    }
    assert {event.id for event in world.events()} == set(done.events)


def test_accepting_a_reply_and_correcting_it_to_itself_agree(world) -> None:
    item = world.put(kind="safety", reply="30 days.")
    world.decide(item, "r1", "accept")
    assert world.decide(item, "r2", "correct", "30 days").state == "done"


def test_the_events_and_the_decision_are_one_transaction(world) -> None:
    """An event of the log that has taken the place of the decision's own stops all of it."""
    item = world.put()
    probe = world.decide(world.put("probe"), "r1", "accept")
    assert probe.events
    taken = parse_event(
        {"type": "thumb", "id": _event_id(item, "r1"), "time": "2026-11-01T12:00:00Z", "interaction": "i1",
         "user": "x", "value": 1}
    )  # fmt: skip
    world.store.append([taken])
    world.queue.claim(item, "r1")
    with pytest.raises(IntegrityError, match="stored with other content"):
        world.queue.decide(item, "r1", "accept")
    assert [one.item for one in world.queue.decisions()] == [probe.item]
    assert world.queue.get(item).state == "claimed"


def _event_id(item: str, reviewer: str) -> str:
    return f"review-{json_digest([item, reviewer])[:32]}"


def test_of_many_reviewers_at_once_everyone_gets_another_item(tmp_path, world_on) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with FeedbackStore(url) as store:
        world = world_on(store)
        for number in range(4):
            world.put(f"i{number}")
    found: list[str] = []

    def work(name: str) -> None:
        with FeedbackStore(url) as own:
            claim = ReviewQueue(own, ReviewSettings(seed_share=0)).next(name)
            assert claim is not None
            found.append(claim.item.id)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(VERDICTS))))
def test_whatever_is_decided_in_whatever_order(world_on, steps: list[tuple[int, str, Any]]) -> None:
    """Nobody decides twice, every decision stays, and the log holds exactly what settled items teach."""
    with FeedbackStore("sqlite://") as store:
        world = world_on(store)
        items = [world.put(f"i{n}", kind=kind) for n, kind in enumerate(("safety", "moderation", "conflict"))]
        said: dict[tuple[str, str], Any] = {}
        for number, reviewer, verdict in steps:
            item = items[number]
            try:
                world.decide(item, reviewer, verdict, "30 days." if verdict == "correct" else None)
            except NotYoursError:
                continue
            assert (item, reviewer) not in said
            said[item, reviewer] = verdict
        assert {(one.item, one.reviewer): one.verdict for one in world.queue.decisions()} == said
        expected = 0
        for number, item in enumerate(items):
            votes = [v for (name, _), v in said.items() if name == item and v != "skip"]
            needed = 2 if number == 0 else 1
            most = max((votes.count(v) for v in set(votes)), default=0)
            done = most >= needed
            assert world.queue.get(item).state == ("done" if done else "waiting" if votes else "open")
            expected += needed if done else 0
        assert len(world.events()) == expected
