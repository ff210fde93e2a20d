"""One laboratory for all tests of a module; strace, where a test needs it, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import strace
from .laboratory import Laboratory, laboratory_of


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    with laboratory_of() as made:
        yield made


@pytest.fixture
def traced() -> None:
    """Skip what needs strace where there is none."""
    if why := strace.missing():
        pytest.skip(why)
