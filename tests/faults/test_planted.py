"""Bugs that are planted are found: a harness that has caught nothing yet may be unable to."""

from __future__ import annotations

import pytest

from .hunts import HUNTS
from .laboratory import Laboratory
from .planted import BUGS

QUICK = ("written_in_place", "digest_not_compared", "two_transactions")


def test_each_bug_has_a_hunt() -> None:
    assert HUNTS.keys() == BUGS.keys() and len(BUGS) >= 10


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=() if bug in QUICK else pytest.mark.slow) for bug in HUNTS])
def test_a_planted_bug_is_found(laboratory: Laboratory, traced: None, bug: str) -> None:
    assert HUNTS[bug](laboratory, bug)


@pytest.mark.slow
@pytest.mark.parametrize("bug", HUNTS)
def test_without_the_bug_its_hunt_finds_nothing(laboratory: Laboratory, traced: None, bug: str) -> None:
    assert not HUNTS[bug](laboratory, "")
