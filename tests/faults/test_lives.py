"""Random lives agree with the model, whatever breaks in them."""

from __future__ import annotations

import os

from .lives import live

LONG = "ILLM_LONG_LIVES"
"""How many lives of 50 steps, instead of a few short ones: 200 before a release, 2,000 in `make faults`."""


def test_random_lives_agree_with_the_model() -> None:
    asked = os.environ.get(LONG)
    live(int(asked), 50) if asked else live(6, 12)
