"""The held-out sample: whole conversations, never trained on, judged or not."""

from __future__ import annotations

import pytest

from incremental_llm.dataset import CompileSettings, held_out_replies
from incremental_llm.feedback.exploration import is_held_out

SHARE = 0.3
IN = next(f"c{n}" for n in range(99) if is_held_out(f"c{n}", SHARE))
OUT = next(f"c{n}" for n in range(99) if not is_held_out(f"c{n}", SHARE))


def test_nothing_of_a_held_out_conversation_is_trained_on(log):
    log.served("i1", "How long is the warranty?", "14 days", conversation=IN)
    log.served("i2", "How long is the warranty in days?", "30 days", conversation=IN, after=60)
    log.corrected("k1", "i1")
    log.up("t1", "i2")
    log.copied("y1", "i2")
    log.served("i3", "How long is the warranty?", "45 days", conversation=OUT)
    log.preferred("p1", "i3", "i1")
    log.ranked("o1", "i3", "i1", "i2")
    log.up("t3", "i3")
    dataset = log.compile(held_out_share=SHARE)
    assert [example.sources for example in dataset.examples] == [("i3", "t3")]
    assert {name: dataset.account[name] for name in ("k1", "t1", "y1", "p1", "o1")} == dict.fromkeys(
        ("k1", "t1", "y1", "p1", "o1"), "held_out"
    )
    assert dataset.corrections == ()
    assert len(log.compile().examples) > 3


def test_later_feedback_on_an_older_held_out_reply_is_left_out_too(log):
    log.up("t1", log.served("i1", conversation=IN))
    assert log.compile(after=1, held_out_share=SHARE).account == {"t1": "held_out"}


def test_what_a_policy_change_ended_is_said_to_be_so(log):
    log.up("t1", log.served("i1", conversation=IN))
    log.changed("c1", "i1")
    assert log.compile(held_out_share=SHARE).account["t1"] == "superseded"


def test_the_sample_has_every_reply_and_what_people_said_of_it(log):
    log.served("i1", "Write to mira@example.com: how long?", "14 days", conversation=IN)
    log.up("t1", "i1", "u1")
    log.down("t2", "i1", "u1")
    log.up("t3", "i1", "u2")
    log.corrected("k1", "i1", "30 days")
    log.corrected("k2", "i1", "45 days")
    log.served("i2", "Unjudged?", "yes", conversation=IN, metadata={"serving": {"policy": "production@8"}})
    log.served("i3", "Ended?", "yes", conversation=IN)
    log.up("t4", log.served("i4", conversation=OUT))
    log.changed("c1", "k1", "i3")
    settings = CompileSettings(held_out_share=SHARE, policy_reviewers=frozenset({"boss"}))
    first, second = held_out_replies(log.events, settings)
    assert (first.id, first.up, first.down, first.corrections) == ("i1", 1, 1, ("45 days",))
    assert first.messages[0].content == "Write to [EMAIL]: how long?"
    assert (second.id, second.up, second.down, second.corrections) == ("i2", 0, 0, ())
    assert second.serving is not None and second.serving.policy == "production@8"
    assert "serving" not in first.model_dump(mode="json")
    assert held_out_replies(log.events, CompileSettings()) == ()


def test_the_last_word_is_the_latest_and_not_the_last_to_arrive(log):
    log.served("i1", conversation=IN)
    log.down("t1", "i1", "u1")
    log.up("t2", "i1", "u1")
    settings = CompileSettings(held_out_share=SHARE)
    served, down, up = log.events
    for events in ([served, down, up], [served, up, down]):
        assert [(one.up, one.down) for one in held_out_replies(events, settings)] == [(1, 0)]


@pytest.mark.parametrize(("what", "said"), [("drop", "ask [EMAIL]"), ("keep", "ask mira@example.com")])
def test_replies_and_corrections_leave_without_personal_data(log, what, said):
    log.served("i1", "I am mira@example.com " * 9, "ask mira@example.com", conversation=IN)
    log.corrected("k1", "i1", "ask mira@example.com")
    settings = CompileSettings(held_out_share=SHARE, personal_data_in_replies=what, max_prompt_chars=20)
    (one,) = held_out_replies(log.events, settings)
    assert (one.reply, one.corrections) == (said, (said,))
    assert "mira" not in one.messages[0].content


def test_a_secret_salt_draws_another_sample(log):
    for n in range(200):
        log.up(f"t{n}", log.served(f"i{n}", conversation=f"c{n}"))
    plain, salted, other = (
        {one.id for one in held_out_replies(log.events, CompileSettings(held_out_share=SHARE, held_out_salt=salt))}
        for salt in ("", "secret", "another")
    )
    assert plain != salted != other and 30 < len(salted) < 90
    account = log.compile(held_out_share=SHARE, held_out_salt="secret").account
    assert {name for name, outcome in account.items() if outcome == "held_out" and name[0] == "i"} == salted
    assert "held_out_salt" not in CompileSettings(held_out_share=SHARE).model_dump(mode="json")
