from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.registry import Attempt, attempt_key, has_new_feedback, to_quarantine

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def attempt(*seqs: int, seed: int = 0) -> Attempt:
    key = attempt_key(seqs, None, 0, seed)
    return Attempt(id=key, time=NOW, parent=0, seqs=seqs, seed=seed, reason="worse")


def test_key_depends_on_batch_recipe_parent_and_seed_but_not_on_order():
    assert attempt_key([2, 1, 1], "r", 0, 0) == attempt_key((1, 2), "r", 0, 0)
    keys = {attempt_key([1], "r", 0, 0), attempt_key([2], "r", 0, 0), attempt_key([1], "s", 0, 0)}
    assert len(keys | {attempt_key([1], "r", 1, 0), attempt_key([1], "r", 0, 1)}) == 5


def test_first_rejection_keeps_the_events_and_the_second_takes_them_out():
    first, second = attempt(1, 2), attempt(1, 2, 3)
    assert to_quarantine([first]) == {}
    assert to_quarantine([first, second]) == {1: second.id, 2: second.id}


def test_a_resumed_run_is_one_try():
    assert to_quarantine([attempt(1, 2), attempt(1, 2)]) == {}


def test_retry_waits_for_new_feedback():
    assert has_new_feedback([1, 2], [])
    assert not has_new_feedback([1, 2], [attempt(1, 2, 3)])
    assert has_new_feedback([1, 2, 4], [attempt(1, 2, 3)])
    assert not has_new_feedback([], [])


@given(st.lists(st.sets(st.integers(1, 8), min_size=1), max_size=6))
def test_quarantine_is_exactly_what_two_distinct_attempts_held(batches):
    attempts = [attempt(*sorted(batch), seed=number) for number, batch in enumerate(batches)]
    counts = Counter(seq for batch in batches for seq in batch)
    assert to_quarantine(attempts).keys() == {seq for seq, count in counts.items() if count >= 2}
