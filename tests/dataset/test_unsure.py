"""What a compile leaves to people: each question once, with who says what, and nothing that was settled."""

from __future__ import annotations

from typing import Any

import pytest

from incremental_llm.dataset import AcceptedCorrection, PairExample
from incremental_llm.dataset.unsure import low_margin, unsure
from incremental_llm.feedback.review import Proposal, Voice


def items(log: Any, **arguments: Any) -> list[Proposal]:
    return unsure(log.compile(**arguments), log.events)


def says(item: Proposal) -> dict[str, str]:
    return {voice.who: voice.says for voice in item.voices}


def test_a_tie_of_thumbs_on_one_reply_is_one_question(log) -> None:
    log.up("t1", log.served("i1", reply="30 days."), "u1")
    log.down("t2", log.served("i2", reply="30 days"), "u2")
    (item,) = items(log)
    assert (item.kind, item.reason, item.reply, item.other, item.priority) == (
        "conflict",
        "conflict",
        "30 days.",
        None,
        1,
    )
    assert says(item) == {"u1": "up", "u2": "down"}
    assert (set(item.sources), item.authors) == ({"i1", "i2", "t1", "t2"}, ("asker", "u1", "u2"))
    assert item.interaction == "i1"


def test_the_same_question_of_another_night_is_the_same_item(log, new_log) -> None:
    other = new_log()
    for one, names in ((log, ("i1", "t1", "t2")), (other, ("j1", "s1", "s2"))):
        one.up(names[1], one.served(names[0], reply="30 days."), "u1")
        one.down(names[2], names[0], "u2")
    assert items(log)[0].id == items(other)[0].id


@pytest.mark.parametrize(("ups", "found"), [(2, [pytest.approx(2 / 3)]), (3, [])])
def test_a_narrow_majority_is_asked_about_and_a_clear_one_is_not(log, ups: int, found: list[Any]) -> None:
    log.served("i1")
    for number in range(ups):
        log.up(f"t{number}", "i1", f"u{number}")
    log.down("t9", "i1", "u9")
    assert [item.priority for item in items(log)] == found


def test_reviewers_without_a_quorum(log) -> None:
    log.corrected("k1", log.served("i1", reply="14 days."), "30 days", "r1")
    log.corrected("k2", "i1", "45 days", "r2")
    (item,) = items(log)
    assert (item.reason, item.reply, item.priority) == ("no_quorum", "14 days.", 1)
    assert set(item.voices) == {Voice(who="r1", says="30 days", text=True), Voice(who="r2", says="45 days", text=True)}
    assert {"r1", "r2"} <= set(item.authors)


def test_a_correction_against_accepted_truth(log) -> None:
    log.corrected("k1", log.served("i1"), "30 days", "r1")
    truth = AcceptedCorrection(
        event_id="k0",
        interaction_id="i0",
        prompt=log.event("i1").messages,
        content="14 days",
        rejected="",
        reviewers=("r0",),
    )
    (item,) = items(log, accepted=(truth,))
    assert (item.reason, item.priority, says(item)) == ("contradicts_accepted", 1, {"r1": "30 days"})


def test_what_was_settled_is_asked_again_when_somebody_turns_against_it(log) -> None:
    log.up("t1", log.served("i1", reply="30 days"), "u1")
    log.down("t2", "i1", "u2")
    (tie,) = items(log)
    prompt = log.event("i1").messages
    truth = {"event_id": "k0", "interaction_id": "i0", "prompt": prompt, "content": "30 days", "rejected": ""}
    (turned,) = items(log, accepted=(AcceptedCorrection(**truth, reviewers=("r0",)),))
    assert (turned.reason, turned.reply, says(turned)) == ("contradicts_accepted", "30 days", {"u2": "down"})
    assert turned.id != tie.id


def test_preferences_that_point_in_opposite_directions(log) -> None:
    log.served("i1", reply="a long stay")
    log.served("i2", reply="brief")
    log.preferred("p1", "i1", "i2", "u1")
    log.preferred("p2", "i2", "i1", "u2")
    (item,) = items(log)
    assert (item.reply, item.other, item.interaction, item.other_interaction) == ("a long stay", "brief", "i1", "i2")
    assert says(item) == {"u1": "the first is better", "u2": "the second is better"}


def test_rankings_that_differ_in_two_of_three_replies(log) -> None:
    for name, reply in (("i1", "apple"), ("i2", "banana"), ("i3", "cherry")):
        log.served(name, reply=reply)
    log.add("ranking", "g1", replies=["i1", "i2", "i3"], user="u1")
    log.add("ranking", "g2", replies=["i1", "i3", "i2"], user="u2")
    (item,) = items(log)
    assert (item.reply, item.other) == ("banana", "cherry")
    assert says(item) == {"u1": "the first is better", "u2": "the second is better"}


def test_a_question_asked_again_is_about_the_first_question(log) -> None:
    log.served("i1", "How long is it?", reply="zebra", user="u1")
    log.served("i2", "How long does it take please?", reply="apple", user="u1", conversation="i1", after=60)
    log.rephrased("r1", "i1", "i2")
    log.served("i3", "How long is it?", reply="apple", user="u3")
    log.preferred("p1", "i1", "i3", "u2")
    pairs = [item for item in items(log) if item.other is not None]
    assert len(pairs) == 1
    assert {pairs[0].reply, pairs[0].other} == {"zebra", "apple"}
    assert pairs[0].prompt == log.event("i1").messages
    assert None not in (pairs[0].interaction or pairs[0].other_interaction,)


def test_what_nobody_disputes_is_no_question(log) -> None:
    log.up("t1", log.served("i1"), "u1")
    log.corrected("k1", log.served("i2", "And this?"))
    log.up("t2", "i2", "u2")  # contradicts the reviewer: settled
    assert items(log) == []


def pair(name: str, chosen: str, rejected: str) -> PairExample:
    prompt = ({"role": "user", "content": "How long is it?"},)
    return PairExample(prompt=prompt, chosen=chosen, rejected=rejected, sources=(name, f"k{name}"), users=("r1",))


def test_the_smallest_margins_are_asked_about_first(log) -> None:
    for name in ("1", "2", "3"):
        log.corrected(f"k{name}", log.served(name, reply=f"wrong {name}"), "45 days", "r1")
    pairs = [(pair(name, "45 days", f"wrong {name}"), margin) for name, margin in (("1", 2.0), ("2", -0.1), ("3", 0.5))]
    first, second = low_margin(pairs, log.events, 2)
    assert (first.other, second.other) == ("wrong 2", "wrong 3")
    assert first.priority > second.priority > 0.5
    assert (first.interaction, first.other_interaction) == (None, "2")
    assert says(first) == {"the model": "prefers the second by 0.100", "r1": "the first is better"}
    assert first.authors == ("asker", "r1")
    assert low_margin([(pair("1", "45 days", "wrong 1"), float("nan"))], log.events, 5) == []
