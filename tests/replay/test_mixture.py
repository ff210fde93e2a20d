"""Old rows among new ones: as many as asked, evenly spread, never a flood of downs."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incremental_llm.chat import Message
from incremental_llm.dataset.examples import KINDS, Example, Kind, PairExample, SftExample, UnpairedExample
from incremental_llm.errors import NothingToTrainError
from incremental_llm.replay.buffer import ReplayBuffer
from incremental_llm.replay.mixture import Mixture, mix
from incremental_llm.replay.settings import ReplaySettings


def row(kind: Kind, name: str, *, desirable: bool = True, weight: float = 1.0) -> Example:
    """A record whose content is its name."""
    prompt = (Message(role="user", content=name),)
    sources = (f"e-{name}",)
    if kind == "sft":
        return SftExample(prompt=prompt, completion=name, weight=weight, sources=sources, users=("u1",))
    if kind == "pair":
        return PairExample(prompt=prompt, chosen=name, rejected="no", weight=weight, sources=sources, users=("u1",))
    return UnpairedExample(
        prompt=prompt, completion=name, desirable=desirable, weight=weight, sources=sources, users=("u1",)
    )


def rows(kind: Kind, count: int, tag: str = "new") -> list[Example]:
    """`count` different records."""
    return [row(kind, f"{tag}-{kind}-{i}") for i in range(count)]


def held(nights: int, per_night: int, kinds: tuple[Kind, ...] = KINDS) -> ReplayBuffer:
    """A buffer of `nights` increments with `per_night` records of each kind."""
    buffer = ReplayBuffer()
    for night in range(1, nights + 1):
        buffer = buffer.updated([r for kind in kinds for r in rows(kind, per_night, f"old{night}")], night, 0)
    return buffer


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KINDS), st.integers(0, 30), min_size=1),
    st.integers(0, 3),
    st.integers(0, 12),
    st.floats(0.0, 0.9),
    st.integers(0, 20),
    st.integers(0, 99),
)
def test_ratio_and_minimum_hold_and_nothing_new_is_lost(
    sizes: dict[Kind, int], nights: int, per_night: int, ratio: float, minimum: int, seed: int
) -> None:
    new = [r for kind, size in sizes.items() for r in rows(kind, size)]
    if not new:
        return
    buffer = held(nights, per_night)
    settings_ = ReplaySettings(ratio=ratio, minimum=minimum)
    mixture = mix(new, buffer, settings_, seed)
    assert mixture == mix(new, buffer, settings_, seed)
    fresh = [r.example for r in mixture.rows if r.origin == "new"]
    assert sorted(e.id for e in fresh) == sorted(e.id for e in new)
    for kind in KINDS:
        n, realised = sizes.get(kind, 0), mixture.realised[kind]
        replayed = [r for r in mixture.of_kind(kind) if r.origin == "replay"]
        asked = 0 if ratio == 0 or (n == 0 and kind != "sft") else max(minimum, ratio * n / (1 - ratio))
        assert realised.new == n and realised.replay == len(replayed)
        assert realised.wanted == pytest.approx(asked, abs=1) and realised.wanted >= asked - 1e-6
        assert realised.replay == min(realised.wanted, nights * per_night)
        assert realised.increments == dict(Counter(r.increment for r in replayed))
        shares = list(realised.increments.values())
        assert not shares or max(shares) - min(shares) <= 1
        assert realised.share == (len(replayed) / (n + len(replayed)) if n + len(replayed) else None)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 9))
def test_old_rows_are_spread_evenly(n: int, minimum: int, seed: int) -> None:
    mixture = mix(rows("sft", n) + rows("pair", n), held(2, 15), ReplaySettings(ratio=0.3, minimum=minimum), seed)
    for kind in ("sft", "pair"):
        origins = [r.origin == "replay" for r in mixture.of_kind(kind)]
        share = sum(origins) / len(origins)
        for length in range(len(origins) + 1):
            assert abs(sum(origins[:length]) - share * length) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30), st.integers(0, 9))
def test_replayed_downs_never_exceed_replayed_ups(ups: int, downs: int, minimum: int, seed: int) -> None:
    old = [row("unpaired", f"up{i}") for i in range(ups)]
    old += [row("unpaired", f"down{i}", desirable=False) for i in range(downs)]
    buffer = ReplayBuffer().updated(old, 1, 0)
    mixture = mix(rows("unpaired", 5), buffer, ReplaySettings(ratio=0.2, minimum=minimum), seed)
    verdicts = Counter(
        r.example.desirable for r in mixture.rows if r.origin == "replay" and isinstance(r.example, UnpairedExample)
    )
    assert verdicts[False] <= verdicts[True]
    if verdicts[False] < min(ups, downs):  # downs are left out only for balance or because enough rows were found
        assert sum(verdicts.values()) >= mixture.realised["unpaired"].wanted - 1


def test_weights_sources_and_increments_are_preserved() -> None:
    old = row("sft", "old", weight=0.125)
    buffer = ReplayBuffer().updated([old], 4, 0)
    mixture = mix([row("sft", "new", weight=0.5)], buffer, ReplaySettings(), 0)
    by_origin = {r.origin: r for r in mixture.rows}
    assert by_origin["replay"].example == old and by_origin["replay"].increment == 4
    assert by_origin["new"].example.weight == 0.5 and by_origin["new"].increment is None


def test_a_kind_without_new_rows_is_not_replayed_except_sft() -> None:
    realised = mix(rows("pair", 8), held(1, 20), ReplaySettings(ratio=0.25, minimum=4), 0).realised
    assert {kind: (r.new, r.replay) for kind, r in realised.items()} == {
        "sft": (0, 4),
        "pair": (8, 4),
        "unpaired": (0, 0),
    }
    assert realised["sft"].share == 1.0 and realised["unpaired"].share is None


def test_a_row_that_is_also_new_is_not_taken_twice() -> None:
    same = rows("sft", 6)
    buffer = ReplayBuffer().updated(same, 1, 0)
    mixture = mix(same, buffer, ReplaySettings(minimum=6), 0)
    assert mixture.realised["sft"].replay == 0 and len(mixture.rows) == 6


def test_ratio_zero_turns_replay_off() -> None:
    mixture = mix(rows("sft", 8), held(1, 20), ReplaySettings(ratio=0.0, minimum=16), 0)
    assert mixture.realised["sft"].replay == 0 and mixture.sentence == "Replay: no old rows among 8 new ones."


def test_the_sentence_has_the_realised_share() -> None:
    mixture = mix(rows("sft", 64), held(2, 30), ReplaySettings(ratio=0.2, minimum=16), 0)
    assert mixture.sentence == "Replay: +16 old rows interleaved (20.0 % of 80)."


def test_the_sentence_says_where_the_buffer_fell_short() -> None:
    mixture = mix(rows("sft", 8) + rows("pair", 8), held(1, 5, ("sft",)), ReplaySettings(ratio=0.1, minimum=16), 0)
    assert mixture.sentence == (
        "Replay: +5 old rows interleaved (23.8 % of 21). "
        "Fewer than wanted, the buffer holds no more that fit: sft 5 of 16, pair 0 of 16."
    )


def test_an_increment_of_replay_alone_is_not_one() -> None:
    with pytest.raises(NothingToTrainError, match="nothing to train"):
        mix([], held(1, 5), ReplaySettings(), 0)


def test_seeds_differ() -> None:
    new, buffer = rows("sft", 20), held(2, 20)
    assert mix(new, buffer, ReplaySettings(), 0).rows != mix(new, buffer, ReplaySettings(), 1).rows


def test_a_mixture_survives_json() -> None:
    mixture = mix(rows("sft", 3) + rows("unpaired", 3), held(2, 4), ReplaySettings(), 0)
    assert Mixture.model_validate_json(mixture.model_dump_json()) == mixture


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": -0.1}, {"minimum": -1}, {"ration": 0.1}])
def test_settings_refuse_what_has_no_meaning(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ReplaySettings(**wrong)


def test_the_ratio_is_of_all_rows_and_does_not_drift_in_floats() -> None:
    assert ReplaySettings(ratio=0.25, minimum=0).wanted(12) == 4
    assert ReplaySettings(ratio=0.1, minimum=0).wanted(90) == 10
    assert ReplaySettings(ratio=0.02, minimum=16).wanted(16) == 16
    assert ReplaySettings(ratio=0.3, minimum=0).wanted(10) == math.ceil(10 * 3 / 7)


def test_every_epoch_has_old_rows_of_its_own() -> None:
    new, buffer = rows("sft", 36), held(2, 30)
    mixture = mix(new, buffer, ReplaySettings(ratio=0.1, minimum=0), 0, passes=lambda kind, count: 2.5)
    realised = mixture.realised["sft"]
    assert (realised.an_epoch, realised.wanted) == (4, 4) and realised.share == 0.1
    turns = mixture.turns["sft"]
    assert [len(set(turn)) for turn in turns] == [4, 4, 4] and len(set(turns)) == 3
    replayed = {row.example.id: row.increment for row in mixture.rows if row.origin == "replay"}
    assert replayed.keys() == {name for turn in turns for name in turn}
    assert mixture.sentence == f"Replay: +4 old rows an epoch (10.0 % of 40), {len(replayed)} of them in turn."
    assert all(sorted(replayed[name] for name in turn) == [1, 1, 2, 2] for turn in turns)  # balanced in each epoch
    assert Mixture.model_validate_json(mixture.model_dump_json()) == mixture


def test_what_a_policy_prefers_is_seen_in_more_epochs() -> None:
    new, buffer = rows("sft", 36), held(4, 8)
    fades = ReplaySettings(policy="half_life", half_life=0.5, ratio=0.1, minimum=0)
    mixture = mix(new, buffer.under(fades, 0), fades, 0, passes=lambda kind, count: 20)
    visits: Counter[int] = Counter()
    for row in mixture.rows:
        if row.origin == "replay":
            visits[row.increment or 0] += len(row.epochs or ())
    assert sum(visits.values()) == 80 and visits[4] > 2 * visits[3] > 0 == visits[1]


def test_the_same_buffer_gives_other_rows_on_another_night() -> None:
    new, settings = rows("sft", 36), ReplaySettings(ratio=0.1, minimum=0, rotate=False)
    drawn, buffer = set(), held(1, 40)
    for number in range(2, 12):  # nights of thumbs alone: nothing new to rehearse
        drawn |= {row.example.id for row in mix(new, buffer, settings, 0).rows if row.origin == "replay"}
        buffer = buffer.updated([], number, 0, settings)
    assert len(drawn) > 20


def test_rotation_takes_what_the_buffer_holds_and_can_be_turned_off() -> None:
    new = rows("sft", 36)
    short = mix(new, held(1, 6), ReplaySettings(ratio=0.1, minimum=0), 0, passes=lambda kind, count: 3)
    assert (short.realised["sft"].replay, short.realised["sft"].an_epoch) == (6, 4)
    whole = mix(new, held(1, 4), ReplaySettings(ratio=0.1, minimum=0), 0, passes=lambda kind, count: 3)
    assert whole.turns == {} and whole.realised["sft"].replay == 4  # all of them in every epoch
    off = mix(new, held(1, 6), ReplaySettings(ratio=0.1, minimum=0, rotate=False), 0, passes=lambda kind, count: 3)
    assert off == mix(new, held(1, 6), ReplaySettings(ratio=0.1, minimum=0, rotate=False), 0)
    assert off.realised["sft"].replay == 4


def test_unpaired_rows_do_not_rotate_for_their_balance_is_that_of_the_whole_draw() -> None:
    mixture = mix(rows("unpaired", 36), held(1, 40), ReplaySettings(ratio=0.1, minimum=0), 0, passes=lambda k, n: 3)
    assert mixture.realised["unpaired"].replay == 4


def test_what_two_nights_taught_is_rehearsed_once() -> None:
    same = rows("sft", 5, "old")
    buffer = ReplayBuffer().updated(same, 1, 0).updated(same, 2, 0)
    mixture = mix(rows("sft", 5), buffer, ReplaySettings(), 0)
    assert sorted(row.increment for row in mixture.rows if row.increment is not None) == [2] * 5
