"""One set of rules that every policy keeps, and for each policy the one property that it is there for."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.chat import Message, json_digest
from incremental_llm.dataset.examples import KINDS, Example, Kind, PairExample, SftExample, UnpairedExample
from incremental_llm.feedback import Interaction, StoredEvent
from incremental_llm.replay import POLICIES, POLICY_NAMES, Facts, ReplayBuffer, ReplaySettings, mix
from incremental_llm.replay.item import ReplayItem

RECIPES: dict[str, dict[str, Any]] = {
    "reservoir": {"policy": "reservoir"},
    "balanced": {},
    "topics": {"policy": "balanced", "balance": "topics"},
    "loss": {"policy": "prioritised", "priority": {"by": "loss"}},
    "flips": {"policy": "prioritised", "priority": {"by": "flips"}},
    "window": {"policy": "window", "window": 3},
    "half_life": {"policy": "half_life", "half_life": 2},
    "self_synthesised": {"policy": "self_synthesised"},
}
NIGHT = datetime(2026, 11, 1, tzinfo=UTC)
TOPICS = ("returns", "shipping", "")

every_policy = pytest.mark.parametrize("name", RECIPES)
streams = st.lists(st.dictionaries(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=5)


def recipe(name: str, **changed: Any) -> ReplaySettings:
    """The recipe of a policy."""
    return ReplaySettings(**RECIPES[name] | changed)


def example(kind: Kind, name: str, *, desirable: bool = True, weight: float = 1.0) -> Example:
    """A record whose content is its name; its event is `e-<name>`."""
    common: dict[str, Any] = {"prompt": (Message(role="user", content=f"{name}?"),), "weight": weight}
    common |= {"sources": (f"e-{name}",), "users": ("u1",)}
    if kind == "sft":
        return SftExample(completion=name, **common)
    if kind == "pair":
        return PairExample(chosen=name, rejected="no", **common)
    return UnpairedExample(completion=name, desirable=desirable, **common)


def stream(increment: int, sizes: dict[Kind, int]) -> list[Example]:
    """Different records of one increment; every third unpaired one is a down, and weighs more."""
    return [
        example(kind, f"{kind}-{increment}-{i}", desirable=i % 3 > 0, weight=1.0 if i % 3 else 2.5)
        for kind, size in sizes.items()
        for i in range(size)
    ]


def facts(*examples: Example) -> Facts:
    """Events of these examples: topics in turn, a night an increment; an example has as many tokens as letters."""
    events = {}
    for item in examples:
        (source,) = item.sources
        increment, number = map(int, source.rsplit("-", 2)[1:])
        metadata = {"topic": TOPICS[number % 3]} if TOPICS[number % 3] else {}
        asked = Interaction(
            id=source,
            time=NIGHT + timedelta(days=increment, minutes=number),
            conversation="c",
            user="u1",
            messages=item.prompt,
            reply="r",
            model="m",
            metadata=metadata,
        )
        events[source] = StoredEvent(len(events) + 1, asked)
    return Facts(events, tokens=lambda e: sum(map(len, (*(m.content for m in e.prompt), *e.texts))))


def measured(buffer: ReplayBuffer, seed: int) -> ReplayBuffer:
    """The buffer after production was measured on two thirds of it, by the content's digest."""

    def note(item: ReplayItem) -> ReplayItem:
        number = int(json_digest([seed, item.example.id])[:8], 16)
        return item if number % 3 == 0 else item.with_loss(number % 100 / 10).with_verdict(number % 2 == 0)

    return buffer.map(note)


def lived(name: str, nights: list[dict[Kind, int]], seed: int, **changed: Any) -> tuple[ReplayBuffer, Facts]:
    """The buffer after these nights, each expired, drawn from and measured as a run does it, and what is known."""
    how = recipe(name, **changed)
    rows = [stream(i, sizes) for i, sizes in enumerate(nights, start=1)]
    known = facts(*(row for night in rows for row in night))
    buffer = ReplayBuffer().under(how, seed, known)
    for increment, night in enumerate(rows, start=1):
        buffer, _ = buffer.without_expired(how, known, NIGHT + timedelta(days=increment))
        buffer = measured(buffer, seed + increment).updated(night, increment, seed, how, known)
    return buffer, known


@every_policy
@settings(max_examples=25, deadline=None)
@given(nights=streams, capacity=st.integers(0, 10), tokens=st.integers(0, 150), seed=st.integers(0, 99))
def test_both_capacities_hold_and_nothing_is_made_up(
    name: str, nights: list[dict[Kind, int]], capacity: int, tokens: int, seed: int
) -> None:
    bounds = {"capacity": dict.fromkeys(KINDS, capacity), "capacity_tokens": {"pair": tokens, "unpaired": tokens}}
    buffer, known = lived(name, nights, seed, **bounds)
    again, _ = lived(name, nights, seed, **bounds)
    assert buffer == again and buffer.to_json() == again.to_json()
    offered = {(i, e.id): e for i, sizes in enumerate(nights, start=1) for e in stream(i, sizes)}
    assert all(offered[item.increment, item.example.id] == item.example for item in buffer.items)
    assert len({item.example.id for item in buffer.items}) == len(buffer.items)
    places = [
        (KINDS.index(i.example.kind), i.increment, list(offered).index((i.increment, i.example.id)))
        for i in buffer.items
    ]
    assert places == sorted(places)  # by kind, increment and arrival
    for kind in KINDS:
        assert len(buffer.of_kind(kind)) <= capacity
        seen, sizes = buffer.seen[kind], {i: night.get(kind, 0) for i, night in enumerate(nights, start=1)}
        assert seen == sizes or name in ("window", "self_synthesised")
        assert seen.keys() == sizes.keys() and all(seen[i] in (sizes[i], 0) for i in sizes)  # 0 once it is too old
        length = sum(known.tokens(item.example) for item in buffer.of_kind(kind)) if known.tokens else 0
        assert kind == "sft" or length <= tokens
    if name not in ("window", "self_synthesised"):  # those let rows go while there is room
        held = len(buffer.of_kind("sft"))
        assert held == min(capacity, sum(sizes.get("sft", 0) for sizes in nights))


@every_policy
@settings(max_examples=20, deadline=None)
@given(nights=streams, capacity=st.integers(0, 10), seed=st.integers(0, 99))
def test_a_stored_buffer_goes_on_as_the_one_in_memory(
    name: str, nights: list[dict[Kind, int]], capacity: int, seed: int
) -> None:
    how = recipe(name, capacity=dict.fromkeys(KINDS, capacity))
    buffer, known = lived(name, nights, seed, capacity=dict.fromkeys(KINDS, capacity))
    text = buffer.to_json()
    read = ReplayBuffer.from_json(text)
    assert read == buffer and read.to_json() == text and read.digest == buffer.digest
    more, next_one = stream(9, {"sft": 6, "unpaired": 6}), len(nights) + 1
    after = [b.under(how, seed, known).updated(more, next_one, seed, how, known).to_json() for b in (buffer, read)]
    assert after[0] == after[1]


@every_policy
@settings(max_examples=25, deadline=None)
@given(nights=streams, minimum=st.integers(0, 12), ratio=st.floats(0, 0.8), seed=st.integers(0, 99))
def test_what_is_drawn_stands_in_the_buffer_once_and_downs_never_exceed_ups(
    name: str, nights: list[dict[Kind, int]], minimum: int, ratio: float, seed: int
) -> None:
    buffer, known = lived(name, nights, seed)
    how = recipe(name, ratio=ratio, minimum=minimum)
    new = stream(20, {"sft": 4, "unpaired": 5})
    mixture = mix(new, buffer, how, seed, known)
    assert mixture == mix(new, buffer, how, seed, known)
    assert sorted(r.example.id for r in mixture.rows if r.origin == "new") == sorted(e.id for e in new)
    drawn = [row for row in mixture.rows if row.origin == "replay"]
    held = {(item.increment, item.example.id): item.example for item in buffer.items}
    assert all(held[row.increment or 0, row.example.id] == row.example for row in drawn)
    assert len({row.example.id for row in drawn}) == len(drawn)
    assert mixture.realised["pair"].replay == 0  # there are no new ones
    realised = mixture.realised["sft"]
    assert realised.replay == min(realised.wanted, len(buffer.of_kind("sft")))
    unpaired = [r.example for r in drawn if isinstance(r.example, UnpairedExample)]
    ups, downs = ([e.weight for e in unpaired if e.desirable is verdict] for verdict in (True, False))
    assert len(downs) <= len(ups) and sum(downs) <= sum(ups)


@every_policy
@settings(max_examples=15, deadline=None)
@given(nights=streams, gone=st.sets(st.integers(0, 8)), seed=st.integers(0, 99))
def test_what_is_superseded_or_expired_comes_back_by_no_way(
    name: str, nights: list[dict[Kind, int]], gone: set[int], seed: int
) -> None:
    buffer, known = lived(name, nights, seed)
    named = {f"e-{kind}-1-{i}" for kind in KINDS for i in gone}
    left, removed = buffer.without(named)
    assert removed == len(buffer.items) - len(left.items)
    how, now = recipe(name, max_increments=2, max_days=2.5), NIGHT + timedelta(days=len(nights) + 1)
    fresh, expired = left.without_expired(how, known, now)
    assert expired == len(left.items) - len(fresh.items)
    young = [item for item in left.items if item.increment >= len(nights) - 1]
    assert list(fresh.items) == ([] if name == "self_synthesised" else young)
    after = fresh.updated(stream(len(nights) + 1, {"sft": 3}), len(nights) + 1, seed, how, known)
    for item in after.items:
        assert named.isdisjoint(item.example.sources) and item.increment >= len(nights) - 1


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "self_synthesised"])
def test_seeds_differ_and_one_kind_never_changes_what_another_keeps(name: str) -> None:
    how = recipe(name, capacity={"sft": 8, "pair": 3}, ratio=0.5, minimum=4)
    rows, others = stream(1, {"sft": 40}), stream(1, {"pair": 9, "unpaired": 9})
    known = facts(*rows, *others)

    def kept(examples: list[Example], seed: int) -> ReplayBuffer:
        return ReplayBuffer().under(how, seed, known).updated(examples, 1, seed, how, known)

    assert kept(rows, 0).of_kind("sft") == kept(others + rows, 0).of_kind("sft") != kept(rows, 1).of_kind("sft")
    buffer, new = kept(rows, 0), stream(20, {"sft": 4})
    assert mix(new, buffer, how, 0, known).rows != mix(new, buffer, how, 1, known).rows


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("balanced", "self_synthesised")])
def test_a_full_buffer_is_not_drawn_from_the_same_places_every_night(name: str) -> None:
    how, rows = recipe(name, minimum=6, ratio=0.1), stream(1, {"sft": 40})
    known, seen = facts(*rows), set[tuple[str, ...]]()
    buffer = ReplayBuffer().under(how, 0, known)
    buffer = measured(buffer.updated(rows, 1, 0, how, known), 0)
    for increment in (2, 3, 4):
        drawn = mix(stream(20, {"sft": 1}), buffer, how, 0, known).rows
        seen.add(tuple(sorted(row.example.id for row in drawn)))
        buffer = buffer.updated([], increment, 0, how, known)
    assert len(seen) == 3


@pytest.mark.parametrize("before", RECIPES)
@every_policy
def test_a_recipe_may_change_its_policy_any_night(name: str, before: str) -> None:
    nights: list[dict[Kind, int]] = [{"sft": 9, "unpaired": 6}] * 3
    buffer, known = lived(before, nights, 3, capacity={"sft": 12})
    how = recipe(name, capacity={"sft": 8})
    changed = buffer.under(how, 3, known)
    assert changed.policy == how.kept_by and set(changed.of_kind("unpaired")) == set(buffer.of_kind("unpaired"))
    assert len(changed.of_kind("sft")) == (0 if name == "self_synthesised" else min(8, len(buffer.of_kind("sft"))))
    after = changed.updated(stream(4, {"sft": 9}), 4, 3, how, known)
    assert ReplayBuffer.from_json(after.to_json()) == after
    tickets = {item.ticket is not None for item in after.items}
    assert tickets <= {POLICIES[how.kept_by].tickets}


def test_the_default_is_what_it_was_bit_for_bit() -> None:
    """Digests of version 0.1.0, before there was any other policy."""
    buffer = ReplayBuffer(capacity={"sft": 10, "pair": 7, "unpaired": 12})

    def named(kind: Kind, night: object, i: int, desirable: bool = True) -> Example:
        return example(kind, f"{kind}-{night}-{i}" if night != "new" else f"new-{kind}-{i}", desirable=desirable)

    for night in range(1, 6):
        rows = [named(k, night, i, i % 3 > 0) for k in KINDS for i in range(4 * night)]
        buffer = buffer.under(ReplaySettings(capacity=buffer.capacity), 99).updated(rows, night, night)
    assert buffer.digest == "5b3b091ba33d9f1fe5c6698b476b08a3f01b006ab0f6f84d1855e30746f66ed5"
    smaller = buffer.under(ReplaySettings(capacity={"sft": 6, "unpaired": 5, "pair": 7}), 3)
    assert smaller.digest == "0f846a39d030f82b5dd8489d1380d975bdfc332d8cb6bdcd32dd1c9073e19700"


def test_a_snapshot_of_version_0_1_0_still_loads() -> None:
    text = (
        '{"capacity":{"pair":2000,"sft":2000,"unpaired":4000},"items":[{"example":{"completion":"a","kind":"sft",'
        '"prompt":[{"content":"a?","role":"user"}],"sources":["e-a"],"users":["u1"],"weight":1.0},"increment":1}],'
        '"policy":"reservoir_balanced","seen":{"pair":{"1":0},"sft":{"1":1},"unpaired":{"1":0}}}'
    )
    assert ReplayBuffer.from_json(text).to_json() == text


def test_every_policy_of_the_recipe_is_in_the_table() -> None:
    assert set(POLICIES) == set(POLICY_NAMES) == {recipe(name).kept_by for name in RECIPES}


def kept_of(name: str, sizes: list[int], capacity: int, runs: int, **changed: Any) -> Counter[tuple[int, str]]:
    """How often each example was kept, over so many seeds."""
    kept: Counter[tuple[int, str]] = Counter()
    for seed in range(runs):
        buffer, _ = lived(name, [{"sft": size} for size in sizes], seed, capacity={"sft": capacity}, **changed)
        kept.update((item.increment, item.example.id) for item in buffer.items)
    return kept


def test_reservoir_every_example_ever_seen_has_the_same_chance() -> None:
    sizes, capacity, runs = [5, 30, 10], 9, 500
    kept = kept_of("reservoir", sizes, capacity, runs)
    expected = runs * capacity / sum(sizes)
    every = [kept[i, e.id] for i, size in enumerate(sizes, start=1) for e in stream(i, {"sft": size})]
    assert sum(every) == runs * capacity
    assert sum((count - expected) ** 2 / expected for count in every) < 78.7  # 44 degrees of freedom, p = 0.001


def test_reservoir_takes_over_a_balanced_buffer_without_favouring_its_rows() -> None:
    """What was kept of a large night stands for all of it: its tickets are the smallest of that many."""
    how, old, kept = recipe("reservoir", capacity={"sft": 20}), stream(1, {"sft": 100}), 0
    known = facts(*old)
    for seed in range(200):
        buffer = ReplayBuffer(capacity={"sft": 20}).updated(old, 1, seed).under(how, seed, known)
        after = buffer.updated(stream(2, {"sft": 100}), 2, seed, how, known)
        kept += after.counts()["sft"].get(1, 0)
    assert kept / 200 == pytest.approx(10, abs=0.6)


def test_balanced_over_topics_keeps_and_draws_equal_shares_whatever_came() -> None:
    buffer, known = lived("topics", [{"sft": 30}, {"sft": 2}], 0, capacity={"sft": 10})
    shares = Counter(known.topic(item.example) for item in buffer.items)
    assert shares == {"shipping": 4, "returns": 3, "": 3}  # those without a topic are one topic
    drawn = mix(stream(20, {"sft": 1}), buffer, recipe("topics", minimum=6), 0, known).rows
    assert Counter(known.topic(row.example) for row in drawn if row.origin == "replay") == dict.fromkeys(TOPICS, 2)


def test_a_topic_is_the_first_that_an_interaction_names() -> None:
    asked = example("sft", "sft-1-0")
    known = facts(asked)
    both = asked.model_copy(update={"sources": ("not in the log", *asked.sources)})
    assert known.topic(both) == "returns" and known.topic(asked.model_copy(update={"sources": ()})) == ""
    odd = {
        name: StoredEvent(1, s.event.model_copy(update={"metadata": {"topic": 7}})) for name, s in known.events.items()
    }
    assert Facts(odd).topic(asked) == ""


@pytest.mark.parametrize(
    ("by", "exponent", "low", "high"), [("loss", 1.0, 7, 11), ("loss", 0.0, 0.8, 1.2), ("flips", 1.0, 40, 200)]
)
def test_prioritised_chance_grows_with_the_priority(by: str, exponent: float, low: float, high: float) -> None:
    """Losses of 10 and 1, or right once and wrong now against always wrong: how much more often the first is drawn."""
    rows = stream(1, {"sft": 200})
    how = recipe("loss", priority={"by": by, "exponent": exponent}, minimum=12, ratio=0.1)
    buffer = ReplayBuffer().under(how, 0).updated(rows, 1, 0, how)
    hard = {row.id for row in rows[::2]}

    def note(item: ReplayItem) -> ReplayItem:
        chosen = item.example.id in hard
        return item.with_loss(10.0 if chosen else 1.0).with_verdict(chosen).with_verdict(False)

    buffer = buffer.map(note)
    drawn: Counter[bool] = Counter()
    for seed in range(120):
        mixture = mix(stream(20, {"sft": 1}), buffer, how, seed)
        drawn.update(row.example.id in hard for row in mixture.rows if row.origin == "replay")
    assert low <= drawn[True] / drawn[False] <= high


def test_prioritised_keeps_the_hard_ones_and_takes_what_is_new_for_hard() -> None:
    how = recipe("loss", capacity={"sft": 20}, priority={"exponent": 4})
    easy = ReplayBuffer().under(how, 0).updated(stream(1, {"sft": 20}), 1, 0, how)
    hard = {item.example.id for item in easy.items[:10]}
    easy = easy.map(lambda item: item.with_loss(5.0 if item.example.id in hard else 0.05))
    after = easy.updated(stream(2, {"sft": 10}), 2, 0, how)
    assert {item.example.id for item in after.items if item.increment == 1} == hard
    assert after.counts()["sft"] == {1: 10, 2: 10}


def test_a_flip_is_right_once_and_wrong_now() -> None:
    item = ReplayItem(example=example("sft", "a"), increment=1)
    wrong, right = item.with_verdict(False), item.with_verdict(True)
    assert not (item.flipped or wrong.flipped or right.flipped or wrong.with_verdict(False).flipped)
    assert right.with_verdict(False).flipped and right.with_verdict(False).with_verdict(False).flipped
    assert not right.with_verdict(False).with_verdict(True).flipped


def test_window_holds_the_last_increments_and_the_oldest_leave_first() -> None:
    buffer, known = lived("window", [{"sft": 6}] * 5, 0, capacity={"sft": 14})
    fresh, expired = buffer.without_expired(recipe("window"), known, None)
    assert buffer.counts()["sft"] == {3: 2, 4: 6, 5: 6} and (fresh, expired) == (buffer, 0)
    one = recipe("window", window=1)
    assert buffer.without_expired(one, known, None)[0].counts()["sft"] == {5: 6}


def test_half_life_keeps_half_as_many_of_an_increment_one_half_life_older() -> None:
    kept = kept_of("half_life", [40] * 5, 20, 150, half_life=1)
    counts = Counter[int]()
    for (increment, _), count in kept.items():
        counts[increment] += count
    for older, newer in pairwise(range(1, 6)):
        assert counts[newer] / counts[older] == pytest.approx(2, rel=0.25 if older > 1 else 0.4)


@pytest.mark.parametrize("capacity", [400, 60])
def test_half_life_the_chance_to_be_kept_and_drawn_halves_once_not_twice(capacity: int) -> None:
    """Whether the buffer holds all or has decayed already."""
    how = recipe("half_life", half_life=1, capacity={"sft": capacity}, minimum=8, ratio=0.1)
    drawn: Counter[int | None] = Counter()
    for seed in range(130 if capacity < 240 else 50):
        buffer, known = lived("half_life", [{"sft": 60}] * 4, seed, half_life=1, capacity={"sft": capacity})
        for draw in range(3 * seed, 3 * seed + 3):
            drawn.update(r.increment for r in mix(stream(20, {"sft": 1}), buffer, how, draw, known).rows)
    for older in (1, 2, 3):
        assert drawn[older + 1] / drawn[older] == pytest.approx(2, rel=0.25)


def test_half_life_of_thousands_of_nights_is_no_overflow() -> None:
    how = recipe("half_life", half_life=0.5)
    buffer = ReplayBuffer().under(how, 0).updated(stream(1, {"sft": 4}), 1, 0, how)
    buffer = buffer.model_copy(update={"seen": {k: dict.fromkeys(range(1, 4000), 4) for k in KINDS}})
    buffer = buffer.updated(stream(4000, {"sft": 4}), 4000, 0, how)
    assert buffer.counts()["sft"] == {1: 4, 4000: 4}
    assert mix(stream(20, {"sft": 1}), buffer, recipe("half_life", half_life=0.5, minimum=4), 0).realised[
        "sft"
    ].increments == {4000: 4}


def test_self_synthesised_keeps_no_text_and_replays_sft_alone() -> None:
    buffer, known = lived("self_synthesised", [{"sft": 5, "pair": 5}] * 2, 0)
    assert buffer.items == () and json.loads(buffer.to_json())["items"] == []
    assert buffer.seen["sft"] == {1: 5, 2: 5}
    mixture = mix(stream(20, {"sft": 5, "pair": 5}), buffer, recipe("self_synthesised"), 0, known)
    assert {kind: r.wanted for kind, r in mixture.realised.items()} == {"sft": 16, "pair": 0, "unpaired": 0}


def test_tokens_bound_a_kind_and_a_longer_row_does_not_block_shorter_ones() -> None:
    how = recipe("reservoir", capacity_tokens={"sft": 30})
    short, long = [example("sft", f"s-1-{i}") for i in range(9)], example("sft", "l" * 40 + "-1-9")
    known = facts(*short, long)
    for seed in range(10):  # whatever ticket the long one draws
        buffer = ReplayBuffer().under(how, seed, known).updated([*short, long], 1, seed, how, known)
        assert [len(i.example.texts[0]) for i in buffer.items] == [5, 5]  # eleven letters each, prompt and reply


def test_expiry_in_days_counts_from_tonights_feedback_and_what_has_no_time_leaves() -> None:
    how = recipe("balanced", max_days=1)
    rows = [*stream(1, {"sft": 2}), *stream(2, {"sft": 2})]
    buffer = ReplayBuffer().updated(rows, 1, 0)
    known = facts(*rows)
    left, expired = buffer.without_expired(how, known, NIGHT + timedelta(days=3))
    assert expired == 2 and {item.example for item in left.items} == set(rows[2:])
    assert buffer.without_expired(how, Facts(), NIGHT)[1] == 4
    assert buffer.without_expired(recipe("balanced"), Facts(), NIGHT) == (buffer, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "newest"},
        {"policy": "reservoir", "balance": "topics"},
        {"policy": "self_synthesised", "answers": "on_policy"},
        {"half_life": 0},
        {"window": 0},
        {"max_days": math.nan},
        {"max_increments": 0},
        {"capacity_tokens": {"dpo": 4}},
        {"priority": {"by": "size"}},
        {"synthesis": {"top_p": 0}},
        {"agreement": 101},
    ],
)
def test_settings_refuse_what_has_no_meaning(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReplaySettings(**wrong)


def test_what_was_superseded_leaves_no_weight_to_what_stays() -> None:
    """One of a hundred examples still holds: it stands for itself, and not for the ninety-nine that do not."""
    fades = ReplaySettings(policy="half_life", half_life=1000, ratio=0.1, minimum=10)
    first, second = ([example("sft", f"{night}-{i}") for i in range(100)] for night in (1, 2))
    buffer = ReplayBuffer().under(fades, 0).updated(first, 1, 0, fades).updated(second, 2, 0, fades)
    left, gone = buffer.without({source for e in first[1:] for source in e.sources})
    assert gone == 99 and left.seen["sft"] == {1: 1, 2: 100}
    drawn = [
        any(row.increment == 1 for row in mix([example("sft", "new")], left, fades, seed).rows) for seed in range(200)
    ]
    assert 5 <= sum(drawn) <= 45  # 10 of 101: 20 expected
