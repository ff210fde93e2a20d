"""Personal data and secrets are replaced or left out before an example is made, and counted."""

from __future__ import annotations

import pytest

from incremental_llm.dataset import CompiledDataset, privacy
from incremental_llm.feedback.redact import redact

ASKED = "I am @mira_b, write to mira@example.com or ring +44 1632 960134. My password is hunter2!"


def test_a_prompt_holds_placeholders_and_is_counted(log, tmp_path):
    log.corrected("k1", log.served("i1", ASKED, "ok"), "We will.")
    dataset = log.compile()
    assert (
        dataset.sft[0].prompt[0].content == "I am [HANDLE], write to [EMAIL] or ring [PHONE]. My password is [SECRET]!"
    )
    assert dataset.redacted == {"email": 1, "handle": 1, "phone": 1, "secret": 1}
    dataset.write(tmp_path)
    assert CompiledDataset.read(tmp_path) == dataset
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert not any(said in written for said in ("mira", "960134", "hunter2"))


def test_questions_that_differ_in_an_address_are_one_question(log):
    for user in ("a", "b"):
        log.up(f"t{user}", log.served(f"i{user}", f"Is {user}@example.com on the list?", "Yes."), user)
    (example,) = log.compile().unpaired
    assert example.users == ("a", "b")


@pytest.mark.parametrize(
    ("told", "made"), [("drop", []), ("replace", ["Write to [EMAIL]."]), ("keep", ["Write to help@example.com."])]
)
def test_a_reply_that_holds_some_is_left_out_unless_told(log, told, made):
    log.corrected("k1", log.served("i1"), "Write to help@example.com.")
    dataset = log.compile(personal_data_in_replies=told)
    assert [example.completion for example in dataset.sft] == made
    assert (dataset.account["k1"] == "personal_data") is (told == "drop")
    assert dataset.redacted == ({"email": 1} if told == "replace" else {})


def test_a_text_that_is_too_long_anyway_is_not_searched(log, monkeypatch):
    searched = []
    monkeypatch.setattr(privacy, "redact", lambda text, public: (searched.append(text), redact(text, public))[1])
    log.corrected("k1", log.served("i1", "@abc " * 11, "ok"), "fine")
    log.corrected("k2", log.served("i2", "a short one", "@abc " * 11), "@abc " * 12)
    dataset = log.compile(personal_data_in_replies="replace", max_prompt_chars=50, max_completion_chars=50)
    assert searched == ["ok", "fine", "a short one"]
    assert {dataset.account[name] for name in ("i1", "k1", "i2", "k2")} == {"too_long"}


def test_what_is_public_stays_everywhere(log):
    log.corrected("k1", log.served("i1", "Is it Help@example.com or mira@example.com?"), "Write to help@example.com.")
    (example,) = log.compile(public_texts=["help@example.com"]).sft
    assert example.completion == "Write to help@example.com."
    assert example.prompt[0].content == "Is it Help@example.com or [EMAIL]?"


def test_older_interactions_are_clean_too_and_counted_once(log):
    log.served("i1", "I am mira@example.com")
    log.corrected("k1", "i1", "Hello.")
    dataset = log.compile(after=1)
    assert dataset.sft[0].prompt[0].content == "I am [EMAIL]" and dataset.redacted == {}


@pytest.mark.parametrize(("before", "now"), [(True, "drop"), (False, "keep")])
def test_the_one_switch_of_before_still_says_the_same(log, before, now):
    settings = log.compile(drop_personal_data=before).settings
    assert (settings.personal_data_in_prompts, settings.personal_data_in_replies) == (now, now)
