"""A flipped bit, a file cut short, gone or swapped: found before it is used, and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from incremental_llm.errors import IncrementalError

from .corruption import KINDS, Account, cut, damage, everything, flip, remove, swap
from .laboratory import Laboratory
from .operations import OPERATIONS, no_failpoint


@pytest.fixture(scope="module")
def lived(laboratory: Laboratory) -> Iterator[Path]:
    """A workspace in which somebody was erased, so that it has files of every kind."""
    with laboratory.copy("erase") as root:
        OPERATIONS["erase"].run(root, no_failpoint)
        yield root


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_named(lived: Path, kind: str) -> None:
    account = Account()
    for how, count in ((flip, 5), (cut, 2), (remove, 1), (swap, 1)):
        damage(lived, kind, count, how, 0, account)
    assert account.done >= 8
    assert account.undetected == [] and account.unnamed == []
    assert account.harmless == 0 or kind == "database"  # which has bytes that hold nothing


@pytest.mark.xfail(strict=True, reason="only versions are under a hash: other rows have SQLite's own checks alone")
@pytest.mark.parametrize("text", [b"a try", b"5e5e5e5e", b"worse for"])
def test_damage_within_a_row_that_no_hash_covers_is_found(lived: Path, text: bytes) -> None:
    """The log of moves, pinned suites and refusals: PRAGMA integrity_check sees that a row is one, not what it says."""
    path = lived / "registry" / "registry.db"
    content = path.read_bytes()
    changed = bytearray(content)
    changed[content.index(text)] ^= 1
    path.write_bytes(changed)
    try:
        with pytest.raises(IncrementalError):
            everything(lived)
    finally:
        path.write_bytes(content)
