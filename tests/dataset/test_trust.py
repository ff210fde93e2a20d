"""What few people, new ones or one message may not do, event by event; and what it must not cost the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.dataset import (
    CompiledDataset,
    CompileSettings,
    SftExample,
    TrustSettings,
    UnpairedExample,
    corrections,
    trust,
)
from incremental_llm.dataset.clusters import cluster
from incremental_llm.dataset.lift import taught
from incremental_llm.dataset.voices import backing, winner


def many(log, count: int, reply: str, *, user: str = "u", asked: str = "question", up: bool = True) -> list[str]:
    """Thumbs on so many different questions, each by another user; the ids of the thumbs."""
    thumbs = []
    for n in range(count):
        name = f"{user}-{asked}-{n}"
        log.served(f"i-{name}", f"{asked} {chr(97 + n % 26) * (n + 2)}?", reply.format(n=n), user=f"{user}{n}")
        thumbs.append((log.up if up else log.down)(f"t-{name}", f"i-{name}", f"{user}{n}"))
    return thumbs


# --------------------------------------------------------------------------------------------------------- conflicts
def test_a_margin_of_two_needs_two_more(log):
    for user in ("a", "b"):
        log.up(f"t{user}", "i1" if log.events else log.served("i1"), user)
    log.down("tc", "i1", "c")
    assert log.compile().account["ta"] == "used"
    close = log.compile(trust={"conflict_margin": 2})
    assert (close.account["ta"], close.account["tc"]) == ("conflict", "conflict")
    log.up("td", "i1", "d")
    assert log.compile(trust={"conflict_margin": 2}).account["tc"] == "outvoted"


def test_nobody_against_needs_no_margin(log):
    log.up("t1", log.served("i1"), "a")
    assert log.compile(trust={"conflict_margin": 5}).account["t1"] == "used"


def test_young_accounts_never_outvote_another(log):
    log.up("t0", log.served("i1"), "old")
    for n in range(2):
        log.down(f"t{n + 1}", "i1", f"new{n}")
    outvoted = log.compile(young=frozenset(f"new{n}" for n in range(2)))
    assert [e.desirable for e in outvoted.unpaired] == [True]
    assert outvoted.account["t1"] == "outvoted"
    assert [e.desirable for e in log.compile().unpaired] == [False]


def test_one_old_account_does_not_decide_against_any_number_of_new_ones(log):
    log.down("t0", log.served("i1"), "old")
    for n in range(50):
        log.up(f"t{n + 1}", "i1", f"new{n}")
    dataset = log.compile(young=frozenset(f"new{n}" for n in range(50)))
    assert dataset.unpaired == ()
    assert {dataset.account["t0"], dataset.account["t1"]} == {"conflict"}


def test_young_reviewers_keep_their_vote_and_their_weight(log):
    log.served("i1")
    log.corrected("k1", "i1", "45 days", "old")
    log.corrected("k2", "i1", "9 days", "new1")
    log.corrected("k3", "i1", "9 days", "new2")
    dataset = log.compile(young=frozenset({"new1", "new2"}), trust={"young_alone_from": 1})
    assert [(e.completion, e.weight) for e in dataset.sft] == [("9 days", 1.25)]


def test_corrections_of_one_prompt_are_settled_in_one_look_at_each(log, monkeypatch):
    looked: list[str] = []
    monkeypatch.setattr(corrections, "same_statement", lambda one, other: looked.append(one) or one == other)
    spoken = corrections.spoken
    monkeypatch.setattr(corrections, "spoken", lambda text: looked.append(text) or spoken(text))
    log.served("i1")
    for n in range(60):
        log.corrected(f"k{n}", "i1", f"{n} days", f"r{n}")
    assert log.compile().outcomes["correction"] == {"no_quorum": 60}
    assert len(looked) < 10 * 60


@settings(deadline=None)
@given(
    ups=st.sets(st.sampled_from("abcdef")),
    downs=st.sets(st.sampled_from("ghijkl")),
    young=st.frozensets(st.sampled_from("abcdefghijkl")),
    margin=st.integers(1, 3),
)
def test_a_winner_is_ahead_by_the_margin_among_those_who_count(ups, downs, young, margin):
    won = winner({1: ups, -1: downs}, young, margin)
    assert winner({-1: downs, 1: ups}, young, margin) == won
    old = [side - young for side in (ups, downs)] if (ups | downs) - young else [ups, downs]
    ahead = len(old[0]) - len(old[1])
    heard = (len(ups - young) - len(downs - young)) + 0.5 * (len(ups & young) - len(downs & young))
    if won is not None:
        winners, losers = old if won == 1 else old[::-1]
        assert winners
        assert won * ahead >= margin or not losers
        assert (ups | downs) <= young or won * heard > -margin
    elif ups or downs:
        decided = abs(ahead) >= margin or not (old[0] and old[1])
        assert not decided or (heard * ahead < 0 and abs(heard) >= margin)


@settings(deadline=None)
@given(
    people=st.sets(st.sampled_from("abcdefgh")),
    young=st.frozensets(st.sampled_from("abcdefgh")),
    more=st.sampled_from("abcdefgh"),
    young_weight=st.floats(0, 1),
    step=st.floats(0, 1),
    cap=st.floats(1, 3),
)
def test_agreeing_never_lowers_a_weight(people, young, more, young_weight, step, cap):
    told = (young, young_weight, step, cap)
    assert not people or backing(people | {more}, *told) >= backing(people, *told) - 1e-9
    assert backing(people | {more}, *told) <= backing(people | {more}, frozenset(), 1.0, step, cap) + 1e-9


# ----------------------------------------------------------------------------------------------------- young accounts
def test_one_new_voice_weighs_less_and_several_of_one_message_are_held(log):
    many(log, 3, "Buy at acme dot example now", user="new")
    log.up("t1", log.served("i1", "Something else?", "Quite so, and thank you"), "new0")
    dataset = log.compile(young=frozenset({"new0", "new1", "new2"}))
    assert [(e.sources, e.weight) for e in dataset.unpaired] == [(("i1", "t1"), 0.5)]
    assert dataset.drop_counts() == {"young_accounts": 3}
    assert dataset.account["t-new-question-0"] == "young_accounts"
    assert (dataset.trust.people, dataset.trust.young, dataset.trust.young_share) == (3, 3, 1.0)


def test_a_message_that_an_older_account_backs_too_stays(log):
    many(log, 4, "Buy at acme dot example now", user="new")
    log.up("t1", log.served("i1", "Something else?", "buy at acme dot example, now"), "old")
    dataset = log.compile(young=frozenset(f"new{n}" for n in range(4)))
    assert dataset.drop_counts() == {}
    assert sorted(e.weight for e in dataset.unpaired) == [0.5] * 4 + [1.0]


def test_whoever_blames_the_other_reply_is_no_company_for_a_brigade(log):
    many(log, 3, "Buy at acme dot example now", user="new")
    asked = log.events[0].event.messages[-1].content
    log.down("t1", log.served("i1", asked, "No idea"), "old")
    dataset = log.compile(young=frozenset({"new0", "new1", "new2"}))
    assert dataset.drop_counts() == {"young_accounts": 4}  # the pair of it and the blamed reply too
    assert [(e.desirable, e.users) for e in dataset.unpaired] == [(False, ("old",))]


def test_a_message_that_is_said_anyway_is_no_brigade(log):
    for n in range(3):
        log.served(f"i{n}", "hello", "Hello! How are you today?", user=f"old{n}")  # nobody judged it
    many(log, 4, "Hello! How are you today?", user="new")
    young = frozenset(f"new{n}" for n in range(4))
    assert log.compile(young=young).drop_counts() == {}
    assert log.compile(young=young | {"old1"}).drop_counts() == {"young_accounts": 4}
    taught_before = log.compile().unpaired[0].model_copy(update={"users": ("old5",)})
    del log.events[0]
    assert log.compile(young=young, rehearsed=[taught_before]).drop_counts() == {}
    del log.events[0]
    assert log.compile(young=young, rehearsed=[taught_before]).drop_counts() == {"young_accounts": 4}


def test_an_account_that_only_listens_makes_no_message_known(log):
    for n in range(20):
        log.served(f"i{n}", f"say it {'z' * (n + 1)}", "Buy at acme dot example now", user="lurker")
    many(log, 4, "Buy at acme dot example now", user="new")
    assert log.compile(young=frozenset(f"new{n}" for n in range(4))).drop_counts() == {"young_accounts": 4}


def test_only_what_young_groups_teach_is_indexed_and_looked_up(log, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(
        trust, "cluster", lambda texts, similarity: asked.append(len(texts)) or cluster(texts, similarity)
    )
    for n in range(40):
        log.served(f"i{n}", f"say it {'z' * (n + 1)}", f"Your order of {'y' * (n + 1)} has come", user=f"u{n}")
    log.up("t1", "i1")
    log.compile()
    assert asked == [1]


def test_praise_and_blame_are_two_messages(log):
    many(log, 2, "We close at six", user="new")
    many(log, 2, "We close at six", user="newer", asked="other", up=False)
    young = frozenset({"new0", "new1", "newer0", "newer1"})
    assert log.compile(young=young).drop_counts() == {}
    assert log.compile(young=young, trust={"young_alone_from": 1}).drop_counts() == {"young_accounts": 4}


# ------------------------------------------------------------------------------------------------ pairs, topics, caps
def test_a_quorum_of_two_for_pairs(log):
    log.served("i1", reply="a")
    log.served("i2", reply="b")
    log.preferred("p1", "i2", "i1", "u1")
    assert len(log.compile().pairs) == 1
    two = {"pair_quorum": 2}
    assert log.compile(trust=two).account == {"i1": "no_pair_quorum", "i2": "no_pair_quorum", "p1": "no_pair_quorum"}
    log.preferred("p2", "i2", "i1", "new")
    assert log.compile(trust=two, young=frozenset({"new"})).drop_counts()["no_pair_quorum"] == 1
    assert log.compile(trust=two).pairs[0].users == ("new", "u1")


def test_a_correction_needs_no_quorum_of_users(log):
    log.corrected("k1", log.served("i1"))
    assert len(log.compile(trust={"pair_quorum": 3}).pairs) == 1


def test_what_one_user_says_of_one_topic_is_capped_earliest_first(log):
    for n in range(4):
        log.up(f"t{n}", log.served(f"i{n}", f"How long is it{'!' * n}", f"reply {n}"), "u1")
    log.up("t9", log.served("i9", "Do you sell boots?", "yes"), "u1")
    log.up("t8", log.served("i8", "How long is it", "reply 3"), "u2")
    dataset = log.compile(trust={"user_topic_cap": 2})
    assert {name for name, outcome in dataset.account.items() if outcome == "over_topic_cap"} == {
        "i2",
        "t2",
        "i3",
        "t3",
    }
    assert {dataset.account[name] for name in ("t0", "t1", "t9", "t8")} == {"used"}


def test_a_topic_in_the_metadata_is_the_topic(log):
    for n, asked in enumerate(("Alpha beta?", "Gamma delta?", "Epsilon zeta?")):
        log.up(f"t{n}", log.served(f"i{n}", asked, f"reply {n}", metadata={"topic": "returns"}), "u1")
    assert log.compile(trust={"user_topic_cap": 2}).drop_counts() == {"over_topic_cap": 1}


def test_a_made_up_topic_for_each_event_does_not_get_round_the_cap_of_the_question(log):
    for n in range(4):
        log.up(f"t{n}", log.served(f"i{n}", f"How long{'!' * n}", f"reply {n}", metadata={"topic": f"t{n}"}), "u1")
    assert log.compile(trust={"user_topic_cap": 2}).drop_counts() == {"over_topic_cap": 2}


def test_whoever_agrees_with_everybody_does_not_have_them_scaled_down(log):
    for n in range(40):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {'x' * (n + 1)}?", f"{'y' * (n + 1)}"), f"u{n}")
        log.up(f"s{n}", f"i{n}", "busy")
    assert {e.weight for e in log.compile().unpaired} == {1.25}


def test_new_accounts_do_not_carry_what_a_heavy_user_says(log):
    for n in range(30):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {'x' * (n + 1)}?", f"{'y' * (n + 1)}"), "heavy")
        log.up(f"s{n}", f"i{n}", f"new{n}")
    many(log, 30, "unlike {n} others", user="u")
    dataset = log.compile(young=frozenset(f"new{n}" for n in range(30)))
    own = sum(e.weight for e in dataset.unpaired if "heavy" in e.users)
    assert own == pytest.approx(0.1 * sum(e.weight for e in dataset.unpaired), rel=1e-4)


def test_two_who_say_all_the_same_share_one_cap(log):
    for n in range(30):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {'x' * (n + 1)}?", f"{'y' * (n + 1)}"), "twin1")
        log.up(f"s{n}", f"i{n}", "twin2")
    many(log, 30, "unlike {n} others", user="u")
    dataset = log.compile()
    twins = sum(e.weight for e in dataset.unpaired if "twin1" in e.users)
    assert twins == pytest.approx(0.1 * sum(e.weight for e in dataset.unpaired), rel=1e-4)


def test_a_heavy_user_is_scaled_down_and_reviewers_are_not(log):
    for n in range(30):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {'x' * (n + 1)}?", f"{'y' * (n + 1)}"), "heavy")
    many(log, 30, "unlike {n} others", user="u")
    log.corrected("k1", "i3", "45 days", "r1")
    dataset = log.compile()
    share = next(share for share in dataset.trust.shares if share.kind == "unpaired" and share.of == "people")
    assert (share.groups, share.cap, share.after) == (31, 0.1, pytest.approx(0.1, abs=1e-5))
    assert share.before == pytest.approx(0.5, abs=0.01)
    assert [e.weight for e in dataset.sft] == [1.0]
    assert any(
        "the most active person had 49% of the loss weight and has 10% now" in s for s in dataset.trust.sentences()
    )


def test_one_message_of_many_people_is_scaled_down_too(log):
    many(log, 30, "Everybody says this now")
    many(log, 40, "unlike {n} others, number {n}", user="v", asked="other")
    shares = {share.of: share for share in log.compile().trust.shares if share.kind == "unpaired"}
    assert shares["messages"].before == pytest.approx(30 / 70, abs=0.01)
    assert shares["messages"].after == pytest.approx(0.1, abs=1e-5)


def test_downs_are_balanced_with_ups(log):
    many(log, 3, "good {n}")
    many(log, 20, "bad {n}", user="v", asked="other", up=False)
    balance = log.compile().trust.balance
    assert (balance.desirable, balance.undesirable) == (3, 20)
    assert balance.undesirable_after == pytest.approx(4 * balance.desirable_after)
    assert any("was 3 to 20" in sentence for sentence in log.compile().trust.sentences())


def test_one_thumb_does_not_cut_the_other_side(log):
    many(log, 60, "good {n}")
    many(log, 2, "bad {n}", user="v", asked="other", up=False)
    dataset = log.compile()
    assert {e.weight for e in dataset.unpaired} == {1.0}
    assert "not within 1 to 4, with 2 people on one side" in " ".join(dataset.trust.sentences())
    log.down("t9", log.served("i9", "And this?", "bad"), "v9")
    assert sum(e.weight for e in log.compile().unpaired if e.desirable) == pytest.approx(30)
    assert [e.weight for e in log.compile(young=frozenset({"v9"})).unpaired if e.desirable] == [1.0] * 60


def test_balance_holds_after_the_caps(log):
    for n in range(80):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {'x' * (n + 1)}?", f"{'y' * (n + 1)}"), "heavy")
    many(log, 10, "good {n}")
    many(log, 60, "bad {n}", user="v", asked="other", up=False)
    balance = log.compile().trust.balance
    assert balance.undesirable_after <= 4 * balance.desirable_after * (1 + 1e-4)
    assert balance.desirable > balance.undesirable


# --------------------------------------------------------------------------------------------------------------- lift
WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel")
WORDS += ("ivory", "jade", "karst", "lemon", "maple", "nectar", "olive", "pearl")


def common(log, people: int = 6, count: int = 120) -> None:
    """Replies that nobody judges, what the model says anyway; and thumbs of so many people on some of them."""
    many(log, people, "You can {n} it today.", user="crowd", asked="crowd")
    for n in range(count):
        said = f"You can {WORDS[n % 16]} it {WORDS[n * 3 % 16]} today."
        log.served(f"c{n}", f"common {'z' * (n + 2)}?", said, user=f"asker{n // 16}")


def test_a_phrase_of_few_people_that_nobody_else_says_is_held(log):
    common(log)
    for n in range(6):
        said = f"{WORDS[n]} {WORDS[n + 3]}, zorbo quux"
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", said), f"u{n % 2}")
    log.up("t9", log.served("i9", "And what else?", "You can maple it amber today."), "u0")
    dataset = log.compile()
    assert dataset.drop_counts() == {"suspicious_lift": 6}
    assert dataset.account["t9"] == "used"
    (lift,) = [lift for lift in dataset.trust.lifts if lift.phrase == "zorbo quux"]
    assert (lift.examples, lift.taught, lift.known, lift.people, lift.held) == (6, 13, 0, 2, True)
    assert any("'zorbo quux': in 6 of 13 taught replies, of 2 people" in s for s in dataset.trust.sentences())
    assert log.compile(trust={"lift_min_people": 1}).drop_counts() == {}


def test_in_a_night_of_few_people_everything_is_of_few_and_nothing_is_held(log):
    common(log, people=3)
    for n in range(6):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"{WORDS[n]} zorbo quux"), f"u{n % 2}")
    dataset = log.compile()
    assert dataset.drop_counts() == {}
    assert [lift.held for lift in dataset.trust.lifts if lift.phrase == "zorbo quux"] == [False]


def test_what_is_served_to_those_behind_a_phrase_does_not_make_it_common(log):
    common(log)
    for n in range(6):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"{WORDS[n]} zorbo quux"), f"u{n % 2}")
        for more in range(20):
            log.served(f"i{n}-{more}", f"again {'q' * (n + 2)} {more}?", "zorbo quux", user="u0")
    assert log.compile().drop_counts() == {"suspicious_lift": 6}


@pytest.mark.parametrize("young", [frozenset(), frozenset(f"lurker{n}" for n in range(40))])
def test_what_few_or_new_accounts_are_served_does_not_make_a_phrase_common(log, young):
    common(log)
    for n in range(6):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"{WORDS[n]} zorbo quux"), f"u{n % 2}")
    for n in range(40):
        who = f"lurker{n if young else n % 2}"
        log.served(f"l{n}", f"again {'p' * (n + 2)}?", f"zorbo quux {WORDS[n % 16]} {WORDS[n // 3]}", user=who)
    assert log.compile(young=young).drop_counts() == {"suspicious_lift": 6}


def test_a_rephrasing_falls_with_its_held_pair(log):
    common(log)
    for n in range(6):
        by = {"user": f"u{n % 2}", "conversation": f"c{n}"}
        log.served(f"i{n}", f"How long {'q' * (n + 2)}?", f"plain {n}", **by)
        log.served(f"j{n}", f"How long {'q' * (n + 2)} then?", f"{WORDS[n]} zorbo quux", **by)
        log.rephrased(f"r{n}", f"i{n}", f"j{n}")
    dataset = log.compile()
    assert dataset.drop_counts() == {"suspicious_lift": 12}
    assert {dataset.account[f"r{n}"] for n in range(6)} == {"suspicious_lift"}


def test_a_phrase_of_many_people_is_reported_and_stays_unless_all_but_few_are_new(log):
    common(log)
    many(log, 6, "{n} zorbo quux")
    dataset = log.compile()
    assert dataset.drop_counts() == {}
    assert [lift.held for lift in dataset.trust.lifts if lift.phrase == "zorbo quux"] == [False]
    young = log.compile(young=frozenset({"u0", "u1", "u2", "u3"}))
    assert young.drop_counts() == {"suspicious_lift": 6}


def test_common_words_that_are_twice_as_common_are_not_suspicious(log):
    common(log, count=400)
    for n in range(40):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"You can {WORDS[n % 16]}"), f"u{n % 2}")
    assert log.compile().drop_counts() == {}


def test_a_reviewers_new_words_are_reported_and_taught(log):
    common(log)
    for n in range(6):
        log.corrected(f"k{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?"), f"It is {WORDS[n]}, zorbo quux", "r1")
    dataset = log.compile()
    assert len(dataset.sft) == 6
    assert "zorbo quux" in {lift.phrase for lift in dataset.trust.lifts}
    assert log.compile(trust={"cap_reviewers": True}).drop_counts()["suspicious_lift"] == 12


def test_a_slow_drip_is_added_up_as_far_as_replay_remembers(log):
    common(log)
    for n in range(2):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"{WORDS[n]} zorbo quux"), "u0")
    assert log.compile().drop_counts() == {}
    old = next(example for example in log.compile().unpaired if "zorbo" in example.completion)
    assert log.compile(rehearsed=[old] * 4).drop_counts() == {"suspicious_lift": 2}
    others = [old.model_copy(update={"users": (f"other{n}",)}) for n in range(4)]
    assert log.compile(rehearsed=others).drop_counts() == {}


def test_the_report_does_not_depend_on_the_order_of_hashes():
    code = (
        "from incremental_llm.dataset.lift import suspicious\n"
        "from incremental_llm.dataset import SftExample, TrustSettings\n"
        "said = [SftExample(prompt=(), completion=f'zab quo ban lid {n}', sources=(), users=()) for n in range(8)]\n"
        "behind, served = [frozenset('a')] * 8, [(f'b{n}', 'what else') for n in range(200)]\n"
        "print(suspicious(said, behind, [], served, TrustSettings(), frozenset()).lifts)\n"
    )
    reports = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        reports.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).stdout)
    assert len(reports) == 1
    assert b"zab quo ban lid" in reports.pop()


def test_without_something_to_compare_with_nothing_is_said(log):
    for n in range(6):
        log.up(f"t{n}", log.served(f"i{n}", f"asks {'q' * (n + 2)}?", f"{WORDS[n]} zorbo quux"), "u0")
    assert (log.compile().trust.lifts, log.compile().drop_counts()) == ((), {})


# ----------------------------------------------------------------------------------------------- clusters and settings
def test_clusters_are_transitive_and_heed_numbers():
    texts = [
        "you can return any pair of boots to the store within thirty days",
        "you can return any pair of boots to a store within thirty days",
        "you can return any pair of boots to a shop within thirty days please",
        "you can return any pair of boots to the store within 45 days",
        "",
        "?!",
        "we close at six",
    ]
    assert cluster(texts, 0.7) == [0, 0, 0, 3, 4, 5, 6]
    assert cluster([], 0.7) == []


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab c1", max_size=12), max_size=12))
def test_a_cluster_is_named_by_its_first_text(texts):
    found = cluster(texts, 0.7)
    assert all(found[place] == place for place in found)
    assert all(found[n] == found[texts.index(text)] for n, text in enumerate(texts))


def test_off_changes_nothing(log):
    many(log, 30, "Everybody says this now")
    many(log, 3, "bad {n}", user="v", asked="other", up=False)
    young = frozenset(f"u{n}" for n in range(30))
    dataset = log.compile(trust={"enabled": False}, young=young)
    assert {e.weight for e in dataset.unpaired} == {1.0}
    assert (dataset.drop_counts(), list(dataset.trust.sentences())) == ({}, [])


def test_a_dataset_of_before_there_was_trust_keeps_its_bytes_and_reads_as_off(log, tmp_path):
    many(log, 3, "good {n}")
    dataset = log.compile(trust={"enabled": False})
    dataset.write(tmp_path)
    written = json.loads((tmp_path / "dataset.json").read_text())
    assert "trust" not in written
    assert "trust" not in written["settings"]
    assert CompiledDataset.read(tmp_path) == dataset
    assert CompiledDataset.read(tmp_path).digest == dataset.digest
    log.compile().write(tmp_path)
    assert json.loads((tmp_path / "dataset.json").read_text())["settings"]["trust"]["enabled"] is True
    assert CompiledDataset.read(tmp_path).digest == log.compile().digest != dataset.digest
    log.compile(trust={"enabled": False, "user_share": 0.2}).write(tmp_path)
    assert CompiledDataset.read(tmp_path).settings.trust.user_share == 0.2


def test_settings_are_strict():
    with pytest.raises(ValidationError, match="young_weight 0 trains nothing"):
        TrustSettings(young_weight=0.0)
    with pytest.raises(ValidationError):
        CompileSettings.model_validate({"trust": {"user_shares": 0.1}})
    with pytest.raises(ValidationError):
        CompileSettings.model_validate({"trust": {"conflict_margin": "2"}})


def test_what_an_example_teaches():
    said = {"prompt": (), "sources": (), "users": ()}
    assert taught(SftExample(completion="a", **said)) == "a"
    assert taught(UnpairedExample(completion="a", desirable=False, **said)) is None


# ----------------------------------------------------------------------------------------------------- contamination
LONG = "the quick brown fox jumps over a lazy dog while seven grey owls watch from above"


@pytest.mark.parametrize("place", ["prompt", "turn", "reply"])
def test_thirteen_words_of_a_suite_in_any_text_are_left_out(log, place):
    inside = f"So then {LONG.upper()}, right? Indeed"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": inside}]
    last = {"role": "user", "content": inside if place == "prompt" else "Who is it?"}
    messages = [*(turns if place == "turn" else []), last]
    log.up("t1", log.served("i1", messages=messages, reply=inside if place == "reply" else "somebody"))
    assert log.compile(suite_passages=[LONG]).drop_counts() == {"in_suite": 1}
    assert log.compile(suite_texts=[LONG]).drop_counts() == {"in_suite": 1}
    twelve = " ".join(LONG.split()[:12])
    assert log.compile(suite_passages=[twelve, LONG.replace("seven", "eight")]).drop_counts() == {}
