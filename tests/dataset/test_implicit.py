"""What users did rather than said: it weighs little, and gives way to what anybody says."""

from __future__ import annotations

import pytest

from incremental_llm.dataset import CompiledDataset, SignalWeights

ALL = {"repeated": 0.1, "abandoned": 0.1}


def verdicts(dataset: CompiledDataset) -> dict[str, tuple[bool, float]]:
    return {e.completion: (e.desirable, e.weight) for e in dataset.unpaired}


def test_a_copied_reply_is_weakly_wanted(log):
    log.copied("y1", log.served("i1", reply="30 days"), "u1")
    log.copied("y2", "i1", "u2")
    log.copied("y3", "i1", "u2")
    dataset = log.compile()
    (example,) = dataset.unpaired
    assert (example.desirable, example.weight, example.implicit) == (True, pytest.approx(0.2 * 1.25), True)
    assert (example.sources, example.users) == (("i1", "y1", "y2", "y3"), ("u1", "u2"))
    assert set(dataset.account.values()) == {"used"}
    assert example.model_dump(mode="json")["implicit"] is True


def test_leaving_counts_only_where_it_is_given_weight(log):
    log.left("l1", log.served("i1"))
    dataset = log.compile()
    assert (dataset.examples, dataset.account) == ((), {"i1": "no_weight", "l1": "no_weight"})
    assert verdicts(log.compile(weights=ALL)) == {"wrong": (False, 0.1)}


def test_a_question_repeated_word_for_word_blames_the_first_of_two_different_replies(log):
    log.served("i1", "How long?", "14 days", conversation="c")
    log.served("i2", "how long", "30 days", conversation="c", after=60)
    log.served("i3", "How long?", "30 days.", conversation="c", after=60)
    log.served("i4", "How long?", "45 days", conversation="c", after=181)
    log.served("i5", "How long?", "90 days", conversation="c", after=10, user="other")
    assert log.compile().examples == () == log.compile().drops
    dataset = log.compile(weights=ALL)
    assert verdicts(dataset) == {"14 days": (False, 0.1)}
    assert dataset.unpaired[0].sources == ("i1", "i2")


@pytest.mark.parametrize("act", ["copied", "left"])
@pytest.mark.parametrize("said", ["up", "down", "tie", "corrected", "preferred", "rephrased", "accepted"])
def test_whatever_anybody_says_of_a_reply_settles_it(log, act, said):
    log.served("i1", "How long is the warranty?", "14 days", conversation="c")
    log.served("i2", "How long is the warranty?", "30 days")
    accepted = ()
    if said == "up" or said == "tie":
        log.up("t1", "i1")
    if said == "down" or said == "tie":
        log.down("t2", "i1", "u2")
    if said == "corrected":
        log.corrected("k1", "i1")
    if said == "preferred":
        log.preferred("p1", "i2", "i1")
    if said == "rephrased":
        log.served("i3", "How long is the warranty in days?", "60 days", conversation="c")
        log.rephrased("r1", "i1", "i3")
    if said == "accepted":
        right = "14 days" if act == "left" else "45 days"
        log.corrected("k1", "i1", right)
        accepted = log.compile().corrections
        log.events.pop()
    before = {e.id: e.weight for e in log.compile(accepted=accepted, weights=ALL).examples}
    for n in range(9):
        getattr(log, act)(f"a{n}", "i1", f"many{n}")
    dataset = log.compile(accepted=accepted, weights=ALL)
    assert {e.id: e.weight for e in dataset.examples} == before
    reason = "said_outright" if said != "accepted" else "contradicts_correction"
    if (said, act) == ("accepted", "left"):
        reason = "contradicts_accepted"
    if said == "corrected" and act == "copied":
        reason = "said_outright"
    assert dataset.account["a3"] == reason


def test_opposite_signs_are_settled_by_distinct_users(log):
    log.served("i1", reply="14 days")
    log.copied("y1", "i1", "u1")
    log.left("l1", "i1", "u2")
    log.left("l2", "i1", "u2")
    tie = log.compile(weights=ALL)
    assert (tie.examples, tie.drop_counts()) == ((), {"conflict": 3})
    log.copied("y2", "i1", "u3")
    settled = log.compile(weights=ALL)
    assert settled.unpaired[0].desirable and settled.unpaired[0].users == ("u1", "u3")
    assert settled.account["l1"] == "outvoted"


def test_one_user_cannot_copy_without_end(log):
    for n in range(5):
        log.copied(f"y{n}", log.served(f"i{n}", f"Question {n} about boots?"))
    dataset = log.compile(user_thumb_cap=3)
    assert (len(dataset.unpaired), dataset.drop_counts()) == (3, {"over_user_cap": 2})


def test_defaults_weigh_what_was_done_less_than_what_was_said():
    weights = SignalWeights()
    done = (weights.copied, weights.repeated, weights.abandoned)
    said = (weights.thumb, weights.correction, weights.preference, weights.ranking, weights.rephrase)
    assert 2 * max(done) < min(said)  # as many users as can be raise a weight twofold


def test_what_is_done_lends_no_weight_to_what_is_said(log):
    log.served("i1", "How long is the retrun period for boots?", "45 days")
    log.served("i2", "How long is the return period for boots?", "45 days")
    for n in range(4):
        log.copied(f"y{n}", "i1", f"many{n}")
    log.up("t1", "i2")
    dataset = log.compile()
    (example,) = dataset.unpaired
    assert (example.weight, example.implicit, len(example.users)) == (1.0, False, 5)
    assert set(example.sources) == {"i1", "i2", "t1", "y0", "y1", "y2", "y3"}
