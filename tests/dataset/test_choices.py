"""Rankings: every two replies are a choice, and all of them together weigh as much as one preference."""

from __future__ import annotations

import pytest


@pytest.fixture
def three(log):
    for name, reply in (("i1", "14 days"), ("i2", "30 days"), ("i3", "45 days")):
        log.served(name, reply=reply)
    return log


def chosen(dataset) -> set[tuple[str, str]]:
    return {(pair.chosen, pair.rejected) for pair in dataset.pairs}


def test_a_ranking_is_all_its_pairs_and_one_opinion(three):
    three.ranked("o1", "i3", "i1", "i2")
    dataset = three.compile()
    assert chosen(dataset) == {("45 days", "14 days"), ("45 days", "30 days"), ("14 days", "30 days")}
    assert sum(pair.weight for pair in dataset.pairs) == pytest.approx(1.0)
    assert {pair.sources for pair in dataset.pairs} == {("i3", "i1", "o1"), ("i3", "i2", "o1"), ("i1", "i2", "o1")}
    assert set(dataset.account.values()) == {"used"}
    assert sum(p.weight for p in three.compile(weights={"ranking": 3.0}).pairs) == pytest.approx(3.0)


def test_the_last_word_of_a_user_stands_whether_it_ranks_or_prefers(three):
    three.ranked("o1", "i1", "i2", "i3")
    three.preferred("p1", "i2", "i1")
    dataset = three.compile()
    assert chosen(dataset) == {("30 days", "14 days"), ("14 days", "45 days"), ("30 days", "45 days")}
    assert dataset.drop_counts() == {"replaced": 1}
    assert dataset.account["o1"] == "used"


def test_rankings_and_preferences_of_distinct_users_settle_a_pair_together(three):
    three.ranked("o1", "i1", "i2", "i3", user="u1")
    three.preferred("p1", "i2", "i1", user="u2")
    three.preferred("p2", "i2", "i1", user="u3")
    dataset = three.compile()
    assert ("30 days", "14 days") in chosen(dataset)
    assert ("14 days", "30 days") not in chosen(dataset)
    assert dataset.drop_counts() == {"outvoted": 1}


def test_only_replies_to_one_prompt_that_differ_are_ranked(three):
    three.served("i4", "Do you sell boots?", "Yes")
    three.served("i5", reply="30 Days!")
    three.ranked("o1", "i2", "i5", "i4", "i1")
    dataset = three.compile()
    assert chosen(dataset) == {("30 days", "14 days")}
    assert dataset.drop_counts() == {"different_prompts": 3, "same_reply": 1}


def test_a_correction_overrules_a_ranking(three):
    three.corrected("k1", "i1", "30 days")
    three.ranked("o1", "i1", "i2")
    dataset = three.compile()
    assert dataset.account["o1"] == "contradicts_correction"


def test_a_ranking_of_a_superseded_reply_is_one_drop(three):
    three.ranked("o1", "i1", "i2", "i3")
    three.changed("c1", "i2")
    dataset = three.compile()
    assert (dataset.pairs, dataset.account["o1"]) == ((), "superseded")
    assert [drop.sources for drop in dataset.drops] == [("i1", "i2", "i3", "o1")]
