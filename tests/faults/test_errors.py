"""Calls that fail: the error says what became of it, the old state is served, and the next commit goes through."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import errors
from .laboratory import Laboratory, Tally
from .worker import Ending


@pytest.mark.parametrize("ever", [False, True])
@pytest.mark.parametrize("error", errors.ERRORS)
def test_a_call_that_fails(laboratory: Laboratory, traced: None, error: str, ever: bool) -> None:
    tally = Tally()
    errors.fail_everywhere(laboratory, "commit", error, 1, tally, ever=ever)
    assert tally.faults and not tally.breaches, str(tally)


def test_a_write_that_is_cut_short(laboratory: Laboratory) -> None:
    tally = Tally()
    errors.cut_short(laboratory, "commit", tally, (300, 5000, 90_000))
    assert not tally.breaches, str(tally)
    assert tally.endings.keys() - {Ending.DONE}, "no write was cut short"


def test_a_disk_that_fills_up(laboratory: Laboratory, tmp_path: Path) -> None:
    tally = Tally()
    try:
        with errors.small_disk(tmp_path / "disk") as disk:
            errors.fill_up(laboratory, "commit", disk, (0, 16, 60), tally)
    except PermissionError as error:
        pytest.skip(f"mounting a tmpfs is not allowed here: {error}")
    assert not tally.breaches, str(tally)
    assert tally.endings.keys() - {Ending.DONE}, "the disk was never full"
