"""What each verdict becomes, and what a compile then makes of it: the reason for the choice stands in the docstring."""

from __future__ import annotations

from typing import Any

import pytest

from incremental_llm.dataset import CompiledDataset, CompileSettings, compile_dataset
from incremental_llm.feedback import parse_event


def compiled(world: Any) -> CompiledDataset:
    return compile_dataset(world.store.read(), CompileSettings(detect_rephrases=False))


def thumb(world: Any, name: str, user: str, value: int, on: str = "i1") -> None:
    fields = {"time": "2026-11-01T12:00:00Z", "interaction": on, "user": user, "value": value}
    world.store.append([parse_event({"type": "thumb", "id": name, **fields})])


def kinds(dataset: CompiledDataset) -> tuple[int, int, int]:
    return len(dataset.sft), len(dataset.pairs), len(dataset.unpaired)


def test_an_accept_is_an_sft_example_without_a_pair_and_ends_the_tie(world) -> None:
    item = world.put("i1", reply="30 days.", kind="conflict")
    thumb(world, "t1", "u1", 1)
    thumb(world, "t2", "u2", -1)
    assert kinds(compiled(world)) == (0, 0, 0)
    world.decide(item, "r1", "accept")
    dataset = compiled(world)
    assert kinds(dataset) == (1, 0, 1)
    assert (dataset.sft[0].completion, dataset.sft[0].users) == ("30 days.", ("r1",))
    assert (dataset.unpaired[0].desirable, dataset.unpaired[0].users) == (True, ("u1",))
    assert dataset.account["t2"] == "contradicts_correction"


def test_a_reject_is_an_undesirable_example_and_breaks_the_tie(world) -> None:
    item = world.put("i1", kind="conflict")
    thumb(world, "t1", "u1", 1)
    thumb(world, "t2", "u2", -1)
    world.decide(item, "r1", "reject")
    dataset = compiled(world)
    assert kinds(dataset) == (0, 0, 1)
    assert (dataset.unpaired[0].desirable, dataset.unpaired[0].users) == (False, ("r1", "u2"))


def test_a_reject_overrules_no_majority(world) -> None:
    item = world.put("i1", kind="conflict")
    for number in range(3):
        thumb(world, f"t{number}", f"u{number}", 1)
    world.decide(item, "r1", "reject")
    assert [example.desirable for example in compiled(world).unpaired] == [True]


def test_a_correction_is_an_sft_example_and_a_pair_with_its_exact_text(world) -> None:
    text = "  30 days\r\nfrom the day \u200bit came. \u202eabc\n"
    world.decide(world.put("i1", reply="14 days."), "r1", "correct", text)
    dataset = compiled(world)
    assert kinds(dataset) == (1, 1, 0)
    assert dataset.sft[0].completion == text
    assert (dataset.pairs[0].chosen, dataset.pairs[0].rejected) == (text, "14 days.")


def pair(world: Any, **fields: Any) -> str:
    world.serve("i2", reply="30 days.")
    return world.put("i1", reply="14 days.", other="30 days.", other_interaction="i2", kind="low_margin", **fields)


@pytest.mark.parametrize(("verdict", "chosen"), [("accept", "14 days."), ("reject", "30 days.")])
def test_of_two_replies_the_better_one_is_preferred(world, verdict: Any, chosen: str) -> None:
    world.decide(pair(world), "r1", verdict)
    dataset = compiled(world)
    assert kinds(dataset) == (0, 1, 0)
    assert dataset.pairs[0].chosen == chosen
    assert [event.type for event in world.events()] == ["preference"]


def test_of_two_replies_neither_may_be_right(world) -> None:
    world.decide(pair(world), "r1", "correct", "45 days.")
    dataset = compiled(world)
    assert (dataset.sft[0].completion, dataset.pairs[0].rejected) == ("45 days.", "14 days.")


@pytest.mark.parametrize(("verdict", "right", "pairs"), [("accept", "45 days.", 1), ("reject", "14 days.", 0)])
def test_a_reply_that_a_person_wrote_is_corrected_to(world, verdict: Any, right: str, pairs: int) -> None:
    """A pair of a correction: only the other reply was served."""
    world.serve("i1", reply="14 days.")
    texts = {"reply": "45 days.", "other": "14 days.", "interaction": None, "other_interaction": "i1"}
    world.decide(world.put("i1", kind="low_margin", **texts), "r1", verdict)
    dataset = compiled(world)
    assert ([example.completion for example in dataset.sft], len(dataset.pairs)) == ([right], pairs)


def test_two_who_agree_stand_behind_one_example(world) -> None:
    item = world.put("i1", kind="safety")
    world.decide(item, "r1", "correct", "Ask a doctor.")
    world.later(3600)
    world.decide(item, "r2", "correct", "ask a doctor")
    (example,) = compiled(world).sft
    assert (example.completion, example.users) == ("Ask a doctor.", ("r1", "r2"))


def test_a_skip_teaches_nothing(world) -> None:
    world.decide(world.put("i1"), "r1", "skip")
    assert world.events() == []


def test_who_rejects_much_and_corrects_something_is_not_one_sided(world) -> None:
    for number in range(8):
        world.decide(world.put(f"i{number}", asked=f"Question {number}?"), "r1", "reject")
    assert compiled(world).drop_counts() == {"one_sided_user": 8}
    world.decide(world.put("i9", asked="Another?"), "r1", "accept")
    assert len(compiled(world).unpaired) == 8


def test_a_seeded_item_teaches_nothing(world) -> None:
    seeded = world.put("i1", expected="reject", interaction=None, authors=())
    for reviewer in ("r1", "r2"):
        assert world.decide(seeded, reviewer, "accept").state == "done"
    assert world.events() == []
    assert world.store.counts() == {"interaction": 1}
