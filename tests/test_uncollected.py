"""The cycle collector is off for a while, and always comes back."""

from __future__ import annotations

import gc

import pytest

from incremental_llm.uncollected import uncollected


def test_it_is_off_inside_and_on_after_an_error() -> None:
    @uncollected()
    def fails() -> None:
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled(), "an inner one does not turn it on for the outer one"
        raise ValueError("as asked")

    for _ in range(2):
        with pytest.raises(ValueError, match="as asked"):
            fails()
        assert gc.isenabled()


def test_who_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
