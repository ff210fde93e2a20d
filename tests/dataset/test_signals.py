"""The table of the design, a row at a time: what each kind of feedback becomes, and how conflicts end."""

from __future__ import annotations

import pytest

from incremental_llm.dataset import CompiledDataset, CompileSettings
from incremental_llm.dataset.rephrases import asks_again


def reasons(dataset: CompiledDataset, kind: str) -> dict[str, int]:
    return next(row.dropped for row in dataset.account_table() if row.kind == kind)


def pairs(dataset: CompiledDataset) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in dataset.pairs]


# ----------------------------------------------------------------------------------------------------- corrections
def test_a_correction_is_an_sft_example_and_a_pair(log):
    log.corrected("k1", log.served("i1"))
    dataset = log.compile()
    (sft,), (pair,) = dataset.sft, dataset.pairs
    assert (sft.prompt[0].content, sft.completion, sft.weight) == ("How long is it?", "45 days", 1.0)
    assert (pair.chosen, pair.rejected) == ("45 days", "wrong")
    assert sft.sources == pair.sources == ("i1", "k1")
    assert sft.users == ("r1",)
    assert dataset.unpaired == ()
    (accepted,) = dataset.corrections
    assert (accepted.event_id, accepted.interaction_id, accepted.content) == ("k1", "i1", "45 days")
    assert (accepted.rejected, accepted.reviewers) == ("wrong", ("r1",))


def test_a_correction_that_repeats_the_reply_gives_no_pair(log):
    log.corrected("k1", log.served("i1", reply="45 Days!"))
    dataset = log.compile()
    assert (len(dataset.sft), dataset.pairs, reasons(dataset, "pair")) == (1, (), {"same_reply": 1})
    assert dataset.account == {"i1": "used", "k1": "used"}


def test_two_reviewers_who_disagree_have_no_quorum(log):
    log.served("i1")
    log.corrected("k1", "i1", "45 days", "r1")
    log.corrected("k2", "i1", "30 days", "r2")
    dataset = log.compile()
    assert dataset.examples == ()
    assert reasons(dataset, "sft") == reasons(dataset, "pair") == {"no_quorum": 2}
    assert dataset.account == {"i1": "no_quorum", "k1": "no_quorum", "k2": "no_quorum"}
    assert dataset.corrections == ()


def test_two_reviewers_one_letter_apart_disagree(log):
    log.served("i1")
    log.corrected("k1", "i1", "That path by the lake is open for hiking and for nothing else until the spring", "r1")
    log.corrected("k2", "i1", "That path by the lake is open for biking and for nothing else until the spring", "r2")
    assert reasons(log.compile(), "sft") == {"no_quorum": 2}


def test_a_strict_majority_of_reviewers_wins_over_replies_to_one_prompt(log):
    log.corrected("k1", log.served("i1"), "45 days", "r1")
    log.corrected("k2", log.served("i2", "how long IS it", "also wrong"), "30 days", "r2")
    log.corrected("k3", log.served("i3", reply="45 days"), "45 days.", "r3")
    dataset = log.compile()
    assert {sft.completion for sft in dataset.sft} == {"45 days"}
    assert dataset.sft[0].users == ("r1", "r3")
    assert reasons(dataset, "sft") == {"duplicate": 1, "outvoted": 1}
    assert [c.event_id for c in dataset.corrections] == ["k1", "k3"]
    assert {c.reviewers for c in dataset.corrections} == {("r1", "r3")}


def test_half_of_the_reviewers_are_no_majority(log):
    log.served("i1")
    for name, content, reviewer in (("k1", "45", "r1"), ("k2", "45", "r2"), ("k3", "30", "r3"), ("k4", "20", "r4")):
        log.corrected(name, "i1", content, reviewer)
    assert reasons(log.compile(), "sft") == {"no_quorum": 4}


def test_many_corrections_of_one_reviewer_are_one_voice(log):
    log.served("i1")
    for n in range(3):
        log.corrected(f"k{n}", "i1", "30 days", "r1")
    log.corrected("k9", "i1", "45 days", "r2")
    assert reasons(log.compile(), "sft") == {"no_quorum": 4}


def test_a_reviewer_may_correct_himself(log):
    log.served("i1")
    log.corrected("k1", "i1", "30 days", "r1")
    log.corrected("k2", "i1", "45 days", "r1")
    dataset = log.compile()
    assert [sft.completion for sft in dataset.sft] == ["45 days"]
    assert reasons(dataset, "sft") == {"replaced": 1}


def test_agreement_on_one_reply_is_one_example_and_no_duplicate(log):
    log.served("i1")
    log.corrected("k1", "i1", "45 days", "r1")
    log.corrected("k2", "i1", "45 days.", "r2")
    dataset = log.compile()
    assert (dataset.sft[0].users, dataset.sft[0].sources) == (("r1", "r2"), ("i1", "k1", "k2"))
    assert (dataset.sft[0].weight, dataset.drops) == (1.25, ())


# ---------------------------------------------------------------------------------------- truth that was accepted
def test_a_correction_cannot_contradict_an_accepted_one_of_the_same_prompt(log):
    log.corrected("k1", log.served("i1"), "45 days")
    accepted = log.compile().corrections
    seen = len(log.events)
    for n in range(5):
        log.corrected(f"bad{n}", log.served(f"j{n}", "how long is it", "45 days"), "7 days", f"brigade{n}")
    log.corrected("same", log.served("i8"), "45 days.", "r2")
    log.corrected("other", log.served("i9", "For how many days is it?"), "7 days", "r3")
    dataset = log.compile(after=seen, accepted=accepted)
    assert reasons(dataset, "sft") == {"contradicts_accepted": 5}
    assert {(c.event_id, c.content) for c in dataset.corrections} == {("same", "45 days."), ("other", "7 days")}


def test_a_policy_change_makes_room_for_a_new_truth(log):
    log.corrected("k1", log.served("i1"), "30 days")
    accepted = log.compile().corrections
    seen = len(log.events)
    log.changed("c1", "k1")
    log.corrected("k2", log.served("i2", reply="30 days"), "45 days", "r2")
    dataset = log.compile(after=seen, accepted=accepted)
    assert [sft.completion for sft in dataset.sft] == ["45 days"]
    assert dataset.superseded == {"k1"}
    assert dataset.account == {"c1": "used", "i2": "used", "k2": "used"}


def test_a_policy_change_ends_the_truth_and_not_one_reviewers_record_of_it(log):
    log.corrected("ka", log.served("i1"), "30 days", "r1")
    log.corrected("kb", log.served("i2", "how long is it"), "The 30 days.", "r2")
    log.corrected("kc", log.served("i3", "Another?"), "30 days", "r2")
    accepted = log.compile().corrections
    seen = len(log.events)
    log.changed("c1", "ka")
    log.corrected("k2", log.served("i4", reply="30 days"), "45 days", "r1")
    dataset = log.compile(after=seen, accepted=accepted)
    assert dataset.superseded == {"ka", "kb"}
    assert [sft.completion for sft in dataset.sft] == ["45 days"]


def test_nothing_stands_on_what_a_policy_change_names(log):
    log.corrected("k1", log.served("i1"))
    log.up("t1", log.served("i2", "Another?", "yes"))
    log.preferred("p1", log.served("i3", "Third?", "a"), log.served("i4", "Third?", "b"))
    log.changed("c1", "k1", "i2", "p1", "never seen")
    dataset = log.compile()
    assert dataset.examples == ()
    assert dataset.account == {
        "i1": "superseded", "k1": "superseded", "i2": "superseded", "t1": "superseded", "i3": "superseded",
        "i4": "superseded", "p1": "superseded", "c1": "used",
    }  # fmt: skip
    assert dataset.superseded == {"k1", "i2", "p1", "never seen"}
    assert reasons(dataset, "unpaired") == {"superseded": 1}


def test_what_an_earlier_policy_change_named_stays_out(log):
    log.served("i1")
    log.up("t1", "i1")
    dataset = log.compile(after=1, superseded=frozenset({"i1"}))
    assert (dataset.examples, dataset.account, dataset.superseded) == ((), {"t1": "superseded"}, frozenset())


def test_a_policy_change_needs_the_right_to_it(log):
    log.corrected("k1", log.served("i1"))
    log.changed("c1", "k1", reviewer="stranger")
    dataset = log.compile(policy_reviewers=["boss"])
    assert (len(dataset.sft), dataset.superseded, dataset.account["c1"]) == (1, frozenset(), "not_authorised")


# ---------------------------------------------------------------------------------------------------------- thumbs
def test_thumbs_are_unpaired_examples(log):
    log.up("t1", log.served("i1", "One?", "yes"))
    log.down("t2", log.served("i2", "Two?", "no"))
    dataset = log.compile()
    assert [(e.completion, e.desirable, e.sources, e.users) for e in dataset.unpaired] == [
        ("yes", True, ("i1", "t1"), ("u1",)),
        ("no", False, ("i2", "t2"), ("u1",)),
    ]
    assert (dataset.sft, dataset.pairs) == ((), ())


def test_up_and_down_on_replies_to_the_same_prompt_are_a_pair(log):
    log.up("t1", log.served("i1", "How long?", "45 days"), "u1")
    log.down("t2", log.served("i2", "how  long", "dunno"), "u2")
    dataset = log.compile()
    assert pairs(dataset) == [("45 days", "dunno")]
    assert (dataset.pairs[0].sources, dataset.pairs[0].users) == (("i1", "i2", "t1", "t2"), ("u1", "u2"))
    assert len(dataset.unpaired) == 2


def test_pairs_of_one_prompt_are_capped(log):
    for n in range(3):
        log.up(f"a{n}", log.served(f"i{n}", reply=f"good {n}"))
        log.down(f"b{n}", log.served(f"j{n}", reply=f"bad {n}"))
    dataset = log.compile(prompt_pair_cap=4)
    assert (len(dataset.pairs), reasons(dataset, "pair")) == (4, {"over_pair_cap": 1})
    (left,) = [drop for drop in dataset.drops if drop.reason == "over_pair_cap"]
    assert left.sources == ("i2", "a2")


def test_users_who_disagree_equally_drop_the_reply(log):
    log.served("i1")
    log.up("t1", "i1", "u1")
    log.down("t2", "i1", "u2")
    dataset = log.compile()
    assert (dataset.unpaired, reasons(dataset, "unpaired")) == ((), {"conflict": 2})
    assert dataset.account == {"i1": "conflict", "t1": "conflict", "t2": "conflict"}


def test_distinct_users_settle_a_reply_and_clicks_do_not(log):
    log.served("i1")
    log.served("i2", "how long is it", "WRONG")
    for n in range(4):
        log.up(f"click{n}", "i1", "loud")
    log.down("t1", "i1", "u1")
    log.down("t2", "i2", "u2")
    dataset = log.compile()
    assert [(e.desirable, e.users) for e in dataset.unpaired] == [(False, ("u1", "u2"))]
    assert reasons(dataset, "unpaired") == {"duplicate": 4, "outvoted": 1}  # three clicks, and i2 repeats i1


def test_the_last_click_of_a_user_stands(log):
    log.served("i1")
    log.up("t1", "i1")
    log.down("t2", "i1")
    dataset = log.compile()
    assert [(e.desirable, e.sources) for e in dataset.unpaired] == [(False, ("i1", "t2"))]
    assert reasons(dataset, "unpaired") == {"replaced": 1}


def test_more_users_weigh_more_up_to_a_cap(log):
    log.served("i1")
    for n in range(9):
        log.up(f"t{n}", "i1", f"u{n}")
    assert log.compile().unpaired[0].weight == 2.0
    assert log.compile(user_weight_cap=9.0).unpaired[0].weight == 3.0
    assert log.compile(user_weight_step=0.0).unpaired[0].weight == 1.0


def test_a_user_who_only_clicks_down_is_left_out(log):
    for n in range(8):
        log.down(f"t{n}", log.served(f"i{n}", f"Question {n}?"), "grump")
    log.up("t8", log.served("i8", "Question 0?", "good"), "u1")
    dataset = log.compile()
    assert reasons(dataset, "unpaired") == {"one_sided_user": 8}
    assert (len(dataset.unpaired), dataset.pairs) == (1, ())
    assert len(log.compile(one_sided_minimum=9).unpaired) == 9
    log.up("t9", "i8", "grump")
    assert reasons(log.compile(), "unpaired") == {}


def test_a_users_thumbs_are_capped_by_time(log):
    for n in range(5):
        log.up(f"t{n}", log.served(f"i{n}", f"Question {n}?"))
    dataset = log.compile(user_thumb_cap=3)
    assert [e.sources[0] for e in dataset.unpaired] == ["i0", "i1", "i2"]
    assert reasons(dataset, "unpaired") == {"over_user_cap": 2}


def test_a_thumb_up_of_a_corrected_reply_falls(log):
    log.served("i1")
    log.up("t1", "i1", "u1")
    log.up("t2", log.served("i2", "how long is it", "Wrong!"), "u2")
    log.down("t3", "i1", "u3")
    log.corrected("k1", "i1")
    log.down("t4", log.served("i3", reply="45 days"), "u4")
    dataset = log.compile()
    assert reasons(dataset, "unpaired") == {"contradicts_correction": 3}
    assert [(e.completion, e.desirable) for e in dataset.unpaired] == [("wrong", False)]
    assert pairs(dataset) == [("45 days", "wrong")]


def test_thumbs_do_not_contradict_an_accepted_correction(log):
    log.corrected("k1", log.served("i1"))
    accepted = log.compile().corrections
    log.up("t1", log.served("i2"), "u1")
    log.down("t2", log.served("i3", reply="45 days"), "u2")
    assert reasons(log.compile(after=2, accepted=accepted), "unpaired") == {"contradicts_accepted": 2}
    assert len(log.compile(after=2).unpaired) == 2


def test_a_filler_word_hides_no_reply_that_reviewers_have_judged(log):
    log.corrected("k1", log.served("i1", reply="Two weeks."), "You can return boots within 30 days.")
    accepted = log.compile().corrections
    log.up("t1", log.served("i2", reply="The two weeks."), "u1")
    log.down("t2", log.served("i3", reply="You can return the boots within 30 days."), "u2")
    dataset = log.compile(after=2, accepted=accepted)
    assert (dataset.unpaired, reasons(dataset, "unpaired")) == ((), {"contradicts_accepted": 2})


# ----------------------------------------------------------------------------------------------------- preferences
def test_a_preference_is_a_pair(log):
    log.preferred("p1", log.served("i1", reply="good"), log.served("i2", "how long is it", "bad"))
    dataset = log.compile()
    assert pairs(dataset) == [("good", "bad")]
    assert dataset.pairs[0].sources == ("i1", "i2", "p1")


@pytest.mark.parametrize(
    ("asked", "reply", "reason"),
    [("Something else?", "bad", "different_prompts"), ("How long is it?", "Good.", "same_reply")],
)
def test_a_preference_needs_one_prompt_and_two_replies(log, asked, reply, reason):
    log.preferred("p1", log.served("i1", reply="good"), log.served("i2", asked, reply))
    dataset = log.compile()
    assert (dataset.pairs, reasons(dataset, "pair")) == ((), {reason: 1})
    assert dataset.account["p1"] == reason


def test_opposite_preferences_are_settled_by_distinct_users(log):
    log.served("i1", reply="one")
    log.served("i2", reply="two")
    log.preferred("p1", "i1", "i2", "u1")
    log.preferred("p2", "i2", "i1", "u2")
    assert reasons(log.compile(), "pair") == {"conflict": 2}
    log.preferred("p3", "i2", "i1", "u2")
    assert reasons(log.compile(), "pair") == {"conflict": 2, "duplicate": 1}
    log.preferred("p4", "i2", "i1", "u3")
    dataset = log.compile()
    assert pairs(dataset) == [("two", "one")]
    assert (reasons(dataset, "pair"), dataset.pairs[0].users) == ({"outvoted": 1, "duplicate": 1}, ("u2", "u3"))
    log.preferred("p5", "i1", "i2", "u3")
    dataset = log.compile()
    assert (pairs(dataset), reasons(dataset, "pair")) == (
        [("one", "two")],
        {"duplicate": 1, "outvoted": 1, "replaced": 1},
    )


def test_a_preference_for_a_corrected_reply_falls(log):
    log.preferred("p1", log.served("i1"), log.served("i2", reply="other"))
    log.corrected("k1", "i1")
    assert reasons(log.compile(), "pair") == {"contradicts_correction": 1}


# ------------------------------------------------------------------------------------------------------- rephrases
def ask_twice(log, second="How long is the warranty, in days?", reply="45 days", after=60.0, conversation="c1"):
    log.served("i1", "How long is the warranty?", conversation="c1")
    log.served("i2", second, reply, after=after, conversation=conversation)


def test_a_rephrase_is_a_lighter_pair_on_the_first_prompt_and_an_undesirable_reply(log):
    log.served("i1", "What is the term?", conversation="c1")
    log.rephrased("r1", "i1", log.served("i2", "Until when can I return?", "45 days", conversation="c1"))
    dataset = log.compile()
    (pair,), (unpaired,) = dataset.pairs, dataset.unpaired
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("What is the term?", "45 days", "wrong")
    assert (unpaired.completion, unpaired.desirable) == ("wrong", False)
    assert pair.weight == unpaired.weight == 0.5
    assert pair.sources == ("i1", "i2", "r1")
    assert pair.users == ("asker",)


def test_a_question_asked_again_is_detected(log):
    ask_twice(log)
    dataset = log.compile()
    assert pairs(dataset) == [("45 days", "wrong")]
    assert dataset.pairs[0].sources == ("i1", "i2")
    assert dataset.account == {"i1": "used", "i2": "used"}


@pytest.mark.parametrize(
    "change",
    [
        {"second": "how long is the warranty"},
        {"second": "Do you sell boots?"},
        {"after": 181.0},
        {"conversation": "c2"},
    ],
)
def test_what_is_not_asking_again(log, change):
    ask_twice(log, **change)
    dataset = log.compile()
    assert (dataset.examples, dataset.drops) == ((), ())
    assert set(dataset.account.values()) == {"no_feedback"}


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [
        ("How much is gift wrapping?", "What is the price of gift wrapping?", True),
        ("Where is your returns centre?", "In which town is your return centre?", True),
        ("How heavy is the tent?", "How many kilos does the tent weigh?", True),
        ("What is the price of the tent?", "What is the warranty of the tent?", False),
        ("Do you ship to Norway?", "Do you ship to Spain?", False),
        ("Is shipping of 50 kilos free?", "Is shipping of 51 kilos free?", False),
        ("Why?", "Why is it illegal to camp there?", False),
        ("Is it?", "Is it so?", False),
    ],
)
def test_which_questions_are_the_same_in_other_words(first, second, again):
    assert asks_again(first, second, CompileSettings()) is again
    assert asks_again(second, first, CompileSettings()) is again


def test_detection_can_be_narrowed_and_switched_off(log):
    ask_twice(log)
    assert log.compile(detect_rephrases=False).examples == ()
    assert log.compile(rephrase_similarity_max=90.0).examples == ()
    assert log.compile(rephrase_window_seconds=59.0).examples == ()


def test_an_explicit_rephrase_is_not_detected_again(log):
    ask_twice(log)
    log.rephrased("r1", "i1", "i2")
    dataset = log.compile()
    assert [pair.sources for pair in dataset.pairs] == [("i1", "i2", "r1")]
    assert dataset.drops == ()


@pytest.mark.parametrize("failed", ["down", "corrected", "disputed"])
def test_a_second_answer_that_failed_teaches_nothing(log, failed):
    ask_twice(log)
    if failed == "corrected":
        log.corrected("k1", "i2", "60 days")
    else:
        log.down("t1", "i2", "u1")
    if failed == "disputed":
        log.up("t2", "i2", "u2")
    dataset = log.compile()
    assert reasons(dataset, "pair") == {"second_answer_failed": 1}
    assert dataset.account["i1"] == "second_answer_failed"


def test_a_second_answer_after_which_the_user_asks_yet_again_is_not_chosen(log):
    for name, question, reply in (
        ("a", "How long is the warranty on boots?", "One year."),
        ("b", "How many years is the warranty on boots?", "Five years."),
        ("c", "For how many years is the warranty on boots?", "Two years."),
    ):
        log.served(name, question, reply, conversation="c1")
    log.rephrased("q1", "a", "b")
    log.rephrased("q2", "b", "c")
    dataset = log.compile()
    assert pairs(dataset) == [("Two years.", "Five years.")]
    assert reasons(dataset, "pair") == {"second_answer_failed": 1}


def test_a_one_sided_users_thumb_does_not_fail_a_second_answer(log):
    ask_twice(log)
    log.down("t0", "i2", "grump")
    for n in range(1, 8):
        log.down(f"t{n}", log.served(f"j{n}", f"Question {n}?"), "grump")
    assert pairs(log.compile()) == [("45 days", "wrong")]


def test_a_praised_first_reply_was_no_reason_to_ask_again(log):
    ask_twice(log)
    log.up("t1", "i1", "u1")
    dataset = log.compile()
    assert (dataset.pairs, reasons(dataset, "pair")) == ((), {"conflict": 1})
    assert [e.desirable for e in dataset.unpaired] == [True]


def test_a_rephrase_and_a_thumb_down_on_the_same_reply_are_one_example(log):
    ask_twice(log)
    log.down("t1", "i1", "u1")
    dataset = log.compile()
    assert [(e.users, e.weight) for e in dataset.unpaired] == [(("asker", "u1"), 1.25)]
    assert dataset.drops == ()


def test_thumbs_without_weight_are_not_there(log):
    log.up("t1", log.served("i1"))
    dataset = log.compile(weights={"thumb": 0, "thumb_pair": 0})
    assert dataset.examples == () and dataset.account == {"i1": "no_weight", "t1": "no_weight"}


@pytest.mark.parametrize(
    ("weights", "kinds", "dropped"),
    [({"thumb": 0}, {"pair"}, {"no_weight": 2}), ({"thumb_pair": 0}, {"unpaired"}, {"no_weight": 2})],
)
def test_thumbs_can_have_weight_in_pairs_alone_or_one_by_one(log, weights, kinds, dropped):
    log.up("t1", log.served("i1", reply="good"))
    log.down("t2", log.served("i2", reply="bad"))
    dataset = log.compile(weights=weights)
    assert ({example.kind for example in dataset.examples}, dataset.drop_counts()) == (kinds, dropped)
    assert set(dataset.account.values()) == {"used"}


@pytest.mark.parametrize("silent", ["preference", "ranking", "rephrase", "correction"])
def test_what_has_no_weight_stands_against_nothing(log, silent):
    log.served("i1", "How long is it?", "14 days", conversation="c1")
    log.served("i2", "How long is it?", "30 days")
    log.preferred("f1", "i1", "i2", "u1") if silent != "preference" else log.ranked("f1", "i1", "i2", user="u1")
    match silent:
        case "preference":
            log.preferred("f2", "i2", "i1", "u2")
        case "ranking":
            log.ranked("f2", "i2", "i1", user="u2")
        case "rephrase":
            log.rephrased("f2", "i1", log.served("i3", "Until when can I?", "30 days", conversation="c1"))
        case "correction":
            log.corrected("f2", "i1", "30 days")
    assert log.compile().account["f1"] != "used"
    dataset = log.compile(weights={silent: 0})
    assert (dataset.account["f1"], dataset.account["f2"]) == ("used", "no_weight")
    assert all(example.weight > 0 and "f2" not in example.sources for example in dataset.examples)


def test_a_rephrasing_that_was_found_without_weight_silences_no_copy(log):
    ask_twice(log)
    log.copied("y1", "i1")
    assert log.compile().account["y1"] == "said_outright"
    assert log.compile(weights={"rephrase": 0}).account["y1"] == "used"


@pytest.mark.parametrize("other", [{"user": "stranger"}, {"conversation": "elsewhere"}])
def test_a_rephrase_of_somebody_elses_question_says_nothing(log, other):
    log.served("i1", "What is the term?", "one", conversation="c1")
    log.served("i2", "Until when?", "two", **{"conversation": "c1"} | other)
    log.rephrased("q1", "i1", "i2")
    dataset = log.compile()
    assert dataset.examples == ()
    assert (reasons(dataset, "pair"), reasons(dataset, "unpaired")) == (
        {"different_people": 1},
        {"different_people": 1},
    )
    assert dataset.account == dict.fromkeys(("i1", "i2", "q1"), "different_people")


def test_a_second_answer_that_reviewers_overrule_is_not_chosen(log):
    ask_twice(log, reply="60 days")
    log.corrected("k1", "i1", "45 days")
    dataset = log.compile()
    assert pairs(dataset) == [("45 days", "wrong")]
    assert reasons(dataset, "pair") == {"contradicts_correction": 1}


@pytest.mark.parametrize("tonight", [True, False])
def test_a_second_answer_that_is_known_to_be_wrong_is_not_chosen(log, tonight):
    log.served("before", "How many days is it?", "Two weeks.")
    log.corrected("k1", "before", "45 days")
    accepted = () if tonight else log.compile().corrections
    log.served("a", "Tell me about the term.", "No idea.", conversation="c1")
    log.rephrased("q1", "a", log.served("b", "How many days is it?", "two weeks", conversation="c1"))
    dataset = log.compile(after=0 if tonight else 2, accepted=accepted)
    assert reasons(dataset, "pair") == {"second_answer_failed": 1}
    assert dataset.account["a"] == "second_answer_failed"


def test_a_rephrase_whose_pair_is_outvoted_blames_nobody(log):
    log.served("i1", "What is the term?", "one", conversation="c1")
    log.rephrased("r1", "i1", log.served("i2", "Until when?", "two", conversation="c1"))
    log.served("i3", "What is the term?", "two")
    log.preferred("p1", "i1", "i3", "u1")
    log.preferred("p2", "i1", "i3", "u2")
    dataset = log.compile()
    assert pairs(dataset) == [("one", "two")]
    assert (dataset.unpaired, reasons(dataset, "unpaired")) == ((), {"outvoted": 1})
