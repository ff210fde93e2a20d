"""The whole compile: every event accounted for, the same result every time, and a dataset that survives the disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.artifacts import staged_folder, verify_folder
from incremental_llm.chat import Message
from incremental_llm.dataset import (
    KINDS,
    CompiledDataset,
    CompileSettings,
    Drop,
    DropReason,
    PairExample,
    SftExample,
    SignalWeights,
    UnpairedExample,
    compile_dataset,
    parse_example,
)
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.feedback import PolicyChange, StoredEvent, parse_event, references


def test_an_empty_batch_is_an_empty_dataset() -> None:
    dataset = compile_dataset([], CompileSettings())
    assert (dataset.examples, dataset.account, dataset.first_seq, dataset.last_seq) == ((), {}, 0, 0)
    assert dataset.counts == {"events": 0, "used": 0, "sft": 0, "pair": 0, "unpaired": 0, "dropped": 0}


def test_filters_and_the_account(log):
    log.corrected("k1", log.served("i1", "Mail mira@example.com?"))
    log.up("t1", log.served("i2", "In a suite?"))
    log.served("i3", "Nobody said anything")
    log.add("page_view", "v1", page="/boots")
    dataset = log.compile(suite_texts=["in a suite"], drop_personal_data=True)
    assert dataset.examples == ()
    assert dataset.account == {
        "i1": "personal_data", "k1": "personal_data", "i2": "in_suite", "t1": "in_suite",
        "i3": "no_feedback", "v1": "unknown_type",
    }  # fmt: skip
    assert [(row.kind, row.made, row.dropped) for row in dataset.account_table()] == [
        ("sft", 0, {"personal_data": 1}),
        ("pair", 0, {"personal_data": 1}),
        ("unpaired", 0, {"in_suite": 1}),
    ]
    assert dataset.drop_counts() == {"in_suite": 1, "personal_data": 2}
    assert dataset.outcomes["interaction"] == {"in_suite": 1, "no_feedback": 1, "personal_data": 1}
    assert (dataset.first_seq, dataset.last_seq) == (1, 6)
    assert dataset.corrections == ()


def test_a_prompt_that_cannot_be_trained_is_dropped_before_the_votes(log):
    log.served("i1", "Ring me: +44 1632 960134")
    log.up("t1", "i1", "u1")
    log.down("t2", "i1", "u2")
    log.corrected("k1", log.served("i2", "In a suite?"), "a", "r1")
    log.corrected("k2", "i2", "b", "r2")
    dataset = log.compile(suite_texts=["in a suite"], drop_personal_data=True)
    assert dataset.drop_counts() == {"personal_data": 2, "in_suite": 4}
    log.changed("c1", "i1")
    assert log.compile().account["t1"] == "superseded"


def test_a_rejected_reply_with_personal_data_costs_the_pair_and_not_the_correction(log):
    log.corrected("k1", log.served("i1", reply="Ask mira@example.com"))
    dataset = log.compile()
    assert (len(dataset.sft), dataset.pairs, len(dataset.corrections)) == (1, (), 1)
    assert dataset.account == {"i1": "used", "k1": "used"}
    assert dataset.corrections[0].rejected == ""  # what is accepted is kept for ever


def test_feedback_on_an_older_interaction_takes_its_text_from_the_context(log):
    log.served("i1")
    log.corrected("k1", "i1")
    dataset = log.compile(after=1)
    assert dataset.sft[0].sources == ("i1", "k1")
    assert dataset.account == {"k1": "used"}
    orphan = compile_dataset(log.events[1:], CompileSettings())
    assert (orphan.examples, orphan.account) == ((), {"k1": "missing_interaction"})


def test_duplicates_are_one_example_with_all_sources_users_and_weight(log):
    log.corrected("k1", log.served("i1", "How long is the return period for boots?"), "It is 45 days.", "r1")
    log.corrected("k2", log.served("i2", "how long is the return period for boots"), "It is 45 days", "r2")
    log.corrected("k3", log.served("i3", "How long is the retrun period for boots?"), "It is 45 days.", "r1")
    log.corrected("k4", log.served("i4", "When must boots be back?"), "It is 45 days.", "r1")
    dataset = log.compile()
    assert [(e.sources, e.users, e.weight) for e in dataset.sft] == [
        (("i1", "k1", "i2", "k2", "i3", "k3"), ("r1", "r2"), 1.25),
        (("i4", "k4"), ("r1",), 1.0),
    ]
    assert dataset.drop_counts() == {"duplicate": 2, "near_duplicate": 2}
    assert set(dataset.account.values()) == {"used"}
    assert len(dataset.corrections) == 4


def test_the_strongest_signal_gives_the_weight(log):
    log.served("i1", "How long is the warranty?", conversation="c")
    log.served("i2", "How long is the warranty in days?", "45 days", after=60, conversation="c")
    log.down("t1", "i1", "u1")
    dataset = log.compile(weights={"rephrase": 0.5, "thumb": 3.0}, user_weight_step=1.0)
    assert [e.weight for e in dataset.unpaired] == [6.0]
    assert [e.weight for e in dataset.pairs] == [0.5]


# ------------------------------------------------------------------------------------------------ for every batch
_PROMPTS = (
    "How long is the warranty?",
    "How long is the warranty in days?",
    "Do you sell boots?",
    "write mira@example.com",
    "In a suite?",
)
_REPLIES = ("30 days", "45 days", "45 Days!", "", "no idea")
_USERS = st.sampled_from(["u0", "u1", "u2"])
_SERVED = st.tuples(st.sampled_from(_PROMPTS), st.sampled_from(_REPLIES), _USERS, st.sampled_from("ab"))
_ABOUT = st.integers(0, 6)
_FEEDBACK = st.one_of(
    st.tuples(st.just("thumb"), _ABOUT, _USERS, st.sampled_from([1, -1])),
    st.tuples(st.just("correction"), _ABOUT, _USERS, st.sampled_from(_REPLIES)),
    st.tuples(st.just("preference"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("rephrase"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("policy_change"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("ping"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("ranking"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("copy"), _ABOUT, _USERS, _ABOUT),
    st.tuples(st.just("abandon"), _ABOUT, _USERS, _ABOUT),
)


def _batch(served: list[tuple[str, str, str, str]], feedback: list[tuple[str, int, str, object]]) -> list[StoredEvent]:
    objects: list[dict[str, object]] = []
    for n, (asked, reply, user, conversation) in enumerate(served):
        messages = [{"role": "user", "content": asked}]
        chance = {"serving": {"policy": f"p@{n % 3}", "propensity": 0.1 + n / 10}} if n % 2 else {}
        about = {"user": user, "conversation": conversation, "messages": messages, "reply": reply, "model": "p@1"}
        about["metadata"] = chance
        objects.append({"type": "interaction", "id": f"i{n}", **about})
    for n, (kind, about_n, user, detail) in enumerate(feedback):
        first = f"i{about_n % len(served)}"
        second = f"i{int(detail) % len(served)}" if isinstance(detail, int) else ""
        fields = {
            "thumb": {"interaction": first, "user": user, "value": detail},
            "correction": {"interaction": first, "reviewer": user, "content": detail},
            "preference": {"chosen": first, "rejected": second, "user": user},
            "rephrase": {"interaction": first, "followup": second},
            "policy_change": {"reviewer": user, "supersedes": [first, f"f{detail}"]},
            "ping": {},
            "ranking": {"replies": list(dict.fromkeys((first, second, "i0"))), "user": user},
            "copy": {"interaction": first, "user": user},
            "abandon": {"interaction": first, "user": user},
        }[kind]
        if (kind in ("preference", "rephrase") and first == second) or len(fields.get("replies", ("", ""))) < 2:
            continue
        objects.append({"type": kind, "id": f"f{n}", **fields})
    times = (f"2026-11-01T12:{n // 2:02}:{30 * (n % 2):02}Z" for n in range(len(objects)))
    return [
        StoredEvent(seq, parse_event({**o, "time": t}))
        for seq, (o, t) in enumerate(zip(objects, times, strict=True), 1)
    ]


@settings(max_examples=150, deadline=None)
@given(
    served=st.lists(_SERVED, min_size=1, max_size=7),
    feedback=st.lists(_FEEDBACK, max_size=14),
    before=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_no_batch_loses_an_event_or_breaks_a_promise(
    served: list[tuple[str, str, str, str]], feedback: list[tuple[str, int, str, object]], before: int, seed: int
) -> None:
    events = _batch(served, feedback)
    context = {stored.event.id: stored for stored in events[:before]}
    batch = events[before:]
    gone = frozenset({"i2", "f3"})
    chosen = CompileSettings(
        one_sided_minimum=3,
        user_thumb_cap=4,
        prompt_pair_cap=2,
        policy_reviewers=frozenset({"u0", "u1"}),
        weights=SignalWeights(abandoned=0.1, repeated=0.1),
        policy_decay=0.5,
    )
    dataset = compile_dataset(batch, chosen, context=context, superseded=gone, suite_texts=["in a suite"])

    assert dataset.account.keys() == {stored.event.id for stored in batch}
    known = {stored.event.id for stored in events}
    for example in dataset.examples:
        assert set(example.sources) <= known
        assert len(set(example.sources)) == len(example.sources) >= 2
        assert gone.isdisjoint(example.sources)
        assert dataset.superseded.isdisjoint(example.sources)
        assert example.users == tuple(sorted(set(example.users)))
        assert all(text.strip() for text in example.texts)
        assert "example.com" not in example.prompt[-1].content
        assert example.prompt[-1].content != "In a suite?"
    assert len({example.id for example in dataset.examples}) == len(dataset.examples)
    used = {name for example in dataset.examples for name in example.sources}
    for stored in batch:
        ruled = isinstance(stored.event, PolicyChange) and chosen.may_change_policy(stored.event.reviewer)
        counts = ruled or stored.event.id in used
        assert (dataset.account[stored.event.id] == "used") == counts
        if references(stored.event) and dataset.account[stored.event.id] not in ("used", "missing_interaction"):
            assert any(stored.event.id in drop.sources for drop in dataset.drops)
    verdicts = {(e.prompt, e.completion): e.desirable for e in dataset.unpaired}
    assert len(verdicts) == len(dataset.unpaired)
    assert all(pair.chosen != pair.rejected for pair in dataset.pairs)
    assert not {(p.prompt, p.chosen, p.rejected) for p in dataset.pairs} & {
        (p.prompt, p.rejected, p.chosen) for p in dataset.pairs
    }
    taught = {(e.prompt, e.completion) for e in dataset.sft}
    assert not any(not desirable and text in taught for text, desirable in verdicts.items())

    shuffled = random.Random(seed).sample(batch, len(batch))
    turned = dict(reversed(context.items()))
    again = compile_dataset(iter(shuffled), chosen, context=turned, superseded=gone, suite_texts=["in a suite"])
    assert again == dataset
    assert again.digest == dataset.digest
    assert list(again.account) == list(dataset.account)


# ---------------------------------------------------------------------------------------------------------- records
@pytest.fixture
def dataset(log) -> CompiledDataset:
    log.corrected("k1", log.served("i1", reply="wrong\u2028on two lines"))
    log.up("t1", log.served("i2", "Two?\n", "yes"))
    log.corrected("k2", log.served("i3", "mira@example.com"))
    log.changed("c1", "k0", "i0")
    return log.compile(policy_reviewers=["boss", "chief"])


def test_a_dataset_survives_the_disk(dataset: CompiledDataset, tmp_path: Path) -> None:
    with staged_folder(tmp_path / "dataset") as folder:
        dataset.write(folder)
    verify_folder(tmp_path / "dataset")
    back = CompiledDataset.read(tmp_path / "dataset")
    assert back == dataset
    assert back.digest == dataset.digest
    assert {path.name for path in (tmp_path / "dataset").iterdir()} == {
        "sft.jsonl", "pairs.jsonl", "unpaired.jsonl", "drops.jsonl", "corrections.jsonl", "dataset.json",
        "manifest.json",
    }  # fmt: skip


def test_a_missing_and_a_damaged_dataset(dataset: CompiledDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no dataset\.json"):
        CompiledDataset.read(tmp_path)
    dataset.write(tmp_path)
    (tmp_path / "sft.jsonl").write_text('{"kind": "sft"}\n')
    with pytest.raises(IntegrityError, match="expected a compiled dataset"):
        CompiledDataset.read(tmp_path)
    (tmp_path / "sft.jsonl").unlink()
    with pytest.raises(InputError, match=r"found no sft\.jsonl"):
        CompiledDataset.read(tmp_path)


def test_an_example_is_named_by_its_content() -> None:
    prompt = (Message(role="user", content="?"),)
    one = SftExample(prompt=prompt, completion="a", weight=2.0, sources=("i1",), users=("u1",))
    assert one.id == SftExample(prompt=prompt, completion="a", sources=(), users=()).id
    up = UnpairedExample(prompt=prompt, completion="a", desirable=True, sources=(), users=())
    pair = PairExample(prompt=prompt, chosen="a", rejected="b", sources=(), users=())
    assert len({e.id for e in (one, up, up.model_copy(update={"desirable": False}), pair)}) == 4
    for example in (one, up, pair):
        assert parse_example(example.model_dump(mode="json")) == example
        assert example.kind in KINDS


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number_from_zero_on(weight: float) -> None:
    with pytest.raises(ValidationError):
        SftExample(prompt=(), completion="a", weight=weight, sources=(), users=())


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="rephrase_windw"):
        CompileSettings.model_validate({"rephrase_windw": 3})
    with pytest.raises(ValidationError, match="no question would ever match"):
        CompileSettings(rephrase_similarity_min=90, rephrase_similarity_max=80)
    for name, field in CompileSettings.model_fields.items():
        assert field.description, name


def test_reasons_are_words_that_are_counted() -> None:
    drop = Drop(kind="sft", reason=DropReason.NO_QUORUM, sources=(), users=())
    assert drop.model_dump(mode="json")["reason"] == "no_quorum"
