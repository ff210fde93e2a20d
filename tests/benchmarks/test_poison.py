"""The attackers of benchmarks/poison.py, on a small log that is made up: what they send is counted, all of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from incremental_llm.dataset import CompileSettings, SftExample

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import poison_log
import poison_nights

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def nights():
    events = []
    for n in range(120):
        time, user = START + timedelta(hours=4 * n), f"u{n % 30}"
        asked = [{"role": "user", "content": f"What about number {n} of it?"}]
        events.append(poison_log.served(f"i{n}", time, user, asked, f"It is {n} or so, {user}."))
        events.append(poison_log.thumb(f"i{n}", time + timedelta(seconds=5), user, 1 if n % 3 else -1))
    return poison_log.nights_of(events, poison_nights.NIGHTS + 1)


def test_nights_have_equally_many_thumbs(nights):
    assert [sum(event.type == "thumb" for event in night) for night in nights] == [20] * 6


@pytest.mark.parametrize("name", poison_log.ATTACKS)
def test_without_controls_every_event_of_an_attacker_becomes_an_example(nights, name):
    settings = CompileSettings.model_validate({"trust": {"enabled": False}})
    reached = poison_nights.Reached()
    poison_nights.attacked(name, 20.0, 0, nights, poison_nights.clean(nights, settings, 0), reached)
    assert reached.sent == (20 if name == "slow_drip" else 4)
    if name != "borrowed_rephrase":  # not theirs to rephrase, with controls or without
        assert reached.used == reached.sent
        assert 0 < reached.weight < reached.whole


def test_with_controls_a_brigade_of_new_accounts_does_not(nights):
    reached = poison_nights.Reached()
    logs = poison_nights.clean(nights, CompileSettings(), 0)
    poison_nights.attacked("brigade", 20.0, 0, nights, logs, reached)
    assert (reached.sent, reached.used, reached.weight) == (4, 0, 0)
    assert reached.reasons == {"young_accounts": 4}


def test_with_controls_a_lurker_makes_no_phrase_known(nights):
    reached = poison_nights.Reached()
    logs = poison_nights.clean(nights, CompileSettings(), 0)
    dataset = poison_nights.attacked("lurker", 20.0, 0, nights, logs, reached)
    assert reached.sent == 4
    assert all(lift.known == 0 for lift in dataset.trust.lifts if "marvolo" in lift.phrase)


def test_one_thumb_keeps_the_weight_of_one(nights):
    shares = []
    for settings in poison_nights.CONTROLS.values():
        reached = poison_nights.Reached()
        poison_nights.one_thumb(nights, poison_nights.clean(nights, settings, 0)[-1], reached)
        assert (reached.sent, reached.used) == (1, 1)
        shares.append(reached.weight / reached.whole)
    assert shares[1] <= 2 * shares[0]


def test_weight_kept_is_what_stays_on_the_same_examples():
    said = {"prompt": (), "users": ("a",)}
    one, two = (SftExample(completion=text, sources=(text,), **said) for text in "ab")
    heavy = two.model_copy(update={"weight": 3.0})
    assert poison_nights.weight_kept([one, two], [one, two]) == 1
    assert poison_nights.weight_kept([one, two], [two]) == 0.5
    assert poison_nights.weight_kept([one, two], [one, heavy]) == 0.75
    assert poison_nights.weight_kept([one], []) == 0
