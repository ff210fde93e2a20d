"""The report: shares with intervals, agreement beyond chance, seeded items, and how they are mixed in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from incremental_llm.errors import InputError
from incremental_llm.feedback.review import Flag, ReviewQueue, Voice, agreement, flagged, read_seeds
from incremental_llm.feedback.review.agreement import krippendorff_alpha
from incremental_llm.feedback.review.seeds import Seed

_JUDGES = (  # Krippendorff 2011, section C: four judges, twelve units, some of them unseen
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_alpha_of_the_published_example() -> None:
    units = [[value for value in unit if value != "."] for unit in zip(*map(str.split, _JUDGES), strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_says_nothing_of_nothing() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1


def test_each_reviewer_has_a_row(world) -> None:
    items = [world.put(f"i{n}", kind="safety") for n in range(3)]
    for item in items:
        world.queue.claim(item, "r1")
        world.later(10)
        world.queue.decide(item, "r1", "reject")
    world.decide(items[0], "r2", "reject")
    world.decide(items[1], "r2", "accept")
    world.decide(items[2], "r2", "skip")
    found = agreement(world.queue)
    r1, r2 = found.reviewers
    assert (r1.reviewer, r1.decisions, r1.skipped, r1.seconds) == ("r1", 3, 0, 10)
    assert (r2.reviewer, r2.decisions, r2.skipped) == ("r2", 2, 1)
    assert (r1.agreed.right, r1.agreed.n, r1.agreed.share) == (1, 2, 0.5)
    assert r1.agreed.interval == pytest.approx((0.0945, 0.9055), abs=1e-3)
    assert (found.shared, r1.caught.n, r1.caught.share, r1.caught.interval) == (2, 0, None, None)


def test_seeded_items_come_at_their_share_and_say_who_looks(make) -> None:
    world = make(seed_share=0.25)
    plain = world.put("i1", priority=1.0)
    seeded = world.put("i2", expected="reject", interaction=None, authors=())
    assert world.queue.next("r1").item.id == plain  # drawn: 1.0
    world.queue.release(plain, "r1")
    world.drawn[0] = 0.24
    assert world.queue.next("r1").item.id == seeded
    second = world.queue.next("r2").item  # everybody gets it, as if alone
    assert (second.id, second.state, second.claimed_by) == (seeded, "claimed", "r2")
    world.queue.decide(seeded, "r1", "correct", "30 days.")
    world.queue.decide(seeded, "r2", "accept")
    assert world.queue.next("r1").item.id == plain  # once each
    assert (world.queue.get(seeded, "r1").state, world.queue.get(seeded, "r1").decided) == ("done", 1)
    known = world.queue.get(seeded)
    assert (known.state, known.decided) == ("open", 0)  # so that it looks like one that nobody has seen
    rows = {row.reviewer: row.caught for row in agreement(world.queue).reviewers}
    assert ((rows["r1"].right, rows["r1"].n), (rows["r2"].right, rows["r2"].n)) == ((1, 1), (0, 1))
    assert world.queue.counts(seeds=False) == {"open": 0, "claimed": 1, "waiting": 0, "done": 0}


@pytest.mark.parametrize("kind", ["moderation", "safety"])
@pytest.mark.parametrize("verdict", ["accept", "skip"])
def test_a_seeded_item_counts_as_any_other_at_every_step(make, kind: str, verdict: str) -> None:
    """One reviewer goes through a seeded item and another through one that is not: they are told the same."""
    world = make()
    world.put("i1", kind=kind)

    def steps(name: str, reviewer: str) -> list[object]:
        told: list[object] = []

        def look() -> None:
            one = world.queue.get(name, reviewer)
            told.append((one.state, one.claimed_by == reviewer, one.decided, world.queue.counts(reviewer)))
            told.append([item.id == name for item in world.queue.items(reviewer=reviewer, states=["claimed"])])

        look()
        world.queue.claim(name, reviewer)
        look()
        world.queue.release(name, reviewer)
        look()
        told.append(world.decide(name, reviewer, verdict).state)
        look()
        told.append(world.queue.decide(name, reviewer, verdict).state)
        return told

    seeded = world.put("i2", kind=kind, expected="reject", interaction=None, authors=(), reply="same")
    plain = world.put("i3", kind=kind, reply="same")
    assert steps(seeded, "r1") == steps(plain, "r2")


def test_seeded_items_have_the_times_and_the_voices_of_others(make) -> None:
    world = make()
    world.queue = ReviewQueue(world.store, world.settings, now=lambda: world.time[0], draw=random.Random(0).random)
    times = set()
    for number in range(4):
        flag = Flag(interaction=f"i{number}", kind="moderation", verdict=f"verdict {number}", confidence=number / 4)
        served = world.store.get([world.serve(f"i{number}")])[f"i{number}"].event
        times.add(world.time[0])
        world.queue.add([flagged(flag, served, "guard")])
        world.later(3600)
    real = [(one.proposal.reason, one.proposal.priority, one.proposal.voices) for one in world.queue.items()]
    seeds = [Seed(prompt=f"{number}?", reply="No.", expected="reject") for number in range(40)]
    like = world.queue.items()
    proposals = [seed.proposal(like, random.Random(number).choice) for number, seed in enumerate(seeds)]
    assert world.queue.add(proposals) == 40
    added = [one for one in world.queue.items() if one.proposal.expected]
    assert {one.created for one in added} == times
    looks = [(one.proposal.reason, one.proposal.priority, one.proposal.voices) for one in added]
    assert len({reason for reason, *_ in looks}) == 4
    assert all(look in real for look in looks)
    (alone,) = Seed(prompt="?", reply="No.", expected="reject", kind="safety", priority=0.8).proposal(like).voices
    assert alone == Voice(who="moderator", says="uncertain, 0.80 sure")


def test_no_share_no_seeded_item(make) -> None:
    world = make(seed_share=0)
    world.drawn[0] = 0.0
    world.put("i1", expected="reject", interaction=None, authors=())
    assert world.queue.next("r1") is None


def test_a_file_of_seeds_is_taken_whole_or_not_at_all(tmp_path: Path, world) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text(
        '{"prompt": "How long?", "reply": "For ever.", "expected": "reject"}\n\n'
        '{"prompt": [{"role": "user", "content": "Hi"}], "reply": "No.", "expected": "reject", "kind": "safety"}\n',
        encoding="utf-8",
    )
    assert world.queue.add(read_seeds(path)) == 2
    assert world.queue.add(read_seeds(path)) == 0
    for wrong, found in (
        ('{"prompt": "How long?"}', "reply: Field required"),
        ('{"prompt": "a", "reply": "b", "expected": "skip"}', "expected: Input should be"),
        ("nothing", "an error at position 1"),
    ):
        path.write_text(f'{{"prompt": "a", "reply": "b", "expected": "reject"}}\n{wrong}\n', encoding="utf-8")
        with pytest.raises(InputError, match="line 2: expected an object") as error:
            read_seeds(path)
        assert found in str(error.value)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="found an empty file"):
        read_seeds(path)
    with pytest.raises(InputError, match="found none"):
        read_seeds(tmp_path / "none.jsonl")
