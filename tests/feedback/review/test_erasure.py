"""An erased person is in no item, and what others are asked stays."""

from __future__ import annotations

import pytest

from incremental_llm.feedback.erasure import Erased, Needles, belongings, check_rules, erase_rows, pseudonyms
from incremental_llm.feedback.review.erasure import RULES
from incremental_llm.feedback.review.tables import metadata


def erase(world, person: str) -> int:
    names, found = pseudonyms(world.store), belongings(world.store, person)
    erased = Erased("e1", person, found.events, found.naming, Needles(person, found.texts), names)
    return dict(erase_rows(world.store, erased)).get("feedback_review_items", 0)


def test_every_table_has_a_rule(world) -> None:
    check_rules(world.store)
    assert {name for rule in RULES for name in rule.tables} == set(metadata.tables)


def test_items_on_his_questions_go_with_all_that_was_decided_of_them(make) -> None:
    world = make(two_person=("moderation",))
    world.serve("his", user="u-canary", asked="where does canary-street end?")
    gone = world.put("his", asked="where does canary-street end?", authors=("u-canary",))
    named = world.put("i2", voices=({"who": "u-canary", "says": "up"},))
    stays = world.put("i3")
    world.decide(gone, "r1", "correct", "canary-street ends at the sea")
    assert erase(world, "u-canary") == 2
    assert [item.id for item in world.queue.items()] == [stays]
    assert world.queue.decisions() == []
    assert named != stays and erase(world, "u-canary") == 0


def test_a_reviewer_leaves_and_his_first_opinion_does_too(make) -> None:
    world = make(two_person=("moderation",))
    item = world.put("i1")
    assert world.decide(item, "r1", "accept").state == "waiting"
    assert erase(world, "r1") == 1
    assert world.queue.decisions() == []
    assert world.queue.get(item).state == "open"
    assert world.decide(item, "r2", "accept").state == "waiting"
    assert world.decide(item, "r3", "accept").state == "done"


@pytest.mark.parametrize("name", ["user", "reply", "role", "kind", "1", "red", "conflict"])
def test_a_name_that_is_a_common_word_takes_nothing_of_others(make, name: str) -> None:
    world = make()
    stays = world.put("i1", asked=f"which {name}?", voices=({"who": "u2", "says": "up"},))
    gone = world.put("i2", asked="another", voices=({"who": name, "says": "up"},))
    assert erase(world, name) == 1
    assert [item.id for item in world.queue.items()] == [stays] and gone != stays
