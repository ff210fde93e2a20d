"""The power goes: whatever the disk had not been told to keep may be gone, torn or in another order."""

from __future__ import annotations

import random

import pytest

from .file_calls import Data, Name, Sync, Tree
from .laboratory import Laboratory, Tally
from .power_loss import after, lose_power


@pytest.mark.parametrize("name", ["commit", "promote"])
def test_the_power_goes(laboratory: Laboratory, traced: None, name: str) -> None:
    tally = Tally()
    lose_power(laboratory, name, 4, tally)
    assert tally.faults == 4 and not tally.breaches, str(tally)


def test_the_model_keeps_what_was_waited_for_and_nothing_else_for_sure() -> None:
    made = [
        Name(0, "a", 1),
        Data(1, 0, b"1" * 600),
        Sync(1),
        Sync(0),
        Data(1, 0, b"2" * 600),
        Name(0, "b", 1, (0, "a")),
    ]
    found = list(after(Tree(), made, 6, random.Random(0)))
    names = {tuple(tree.folders[0]) for tree in found}
    assert names == {("a",), ("b",)}  # one of them always is there
    contents = {tree.files[1] for tree in found}
    assert {b"1" * 600, b"2" * 600} < contents and any(len(set(content)) == 2 for content in contents)  # torn
    lost = list(after(Tree(), made[:3], 0, random.Random(0)))
    assert any(not tree.folders[0] for tree in lost)  # its folder was not waited for
