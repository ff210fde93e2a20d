"""What a disk may hold after the power went: all that was waited for, and of the rest whatever the disk got to.

The model is POSIX's, which promises less than ext4 does. A file's bytes are there once it was synced, each name once
its folder was; before that each write, in parts of 512 bytes, and each name may be there or not, in any order.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import file_calls
from .file_calls import Change, Data, Name, Sync, Tree
from .laboratory import Laboratory, Tally
from .worker import Ending

SECTOR = 512
Kept = Callable[[Change], bool]


def lose_power(
    laboratory: Laboratory,
    name: str,
    most: int,
    tally: Tally,
    *,
    draws: int = 2,
    bug: str = "",
    options: Sequence[str] = (),
) -> None:
    """Check at most so many of the distinct states that a power cut can leave of an operation."""
    with laboratory.copy(name) as root:
        before, log = Tree.of(root), laboratory.folder / "changes.log"
        with laboratory.copy_of(root) as run:
            order = laboratory.order(name, run, traced=True, bug=bug)
            ending = laboratory.inject(order, *file_calls.OPTIONS, *options, out=log)
            changes = file_calls.changes_in(log, run, before)
    for at, tree in _some(list(distinct(before, changes, draws)), most):
        with laboratory.empty() as root:
            write_tree(tree, root)
            ended = ending if at == len(changes) else Ending.KILLED
            verdict = laboratory.check(name, root, ended, twice=False)
        tally.add(f"{name}: power lost after change {at} of {len(changes)}", ended, verdict)


def distinct(before: Tree, changes: Sequence[Change], draws: int) -> Iterator[tuple[int, Tree]]:
    """Every state that differs from those before it, with how many changes had been made; the last ones come last."""
    seen: set[int] = set()
    for at in range(len(changes) + 1):
        for tree in after(before, changes[:at], draws, random.Random(at)):
            key = hash((at == len(changes), _content(tree, 0)))
            if key not in seen:
                seen.add(key)
                yield at, tree


def after(before: Tree, changes: Sequence[Change], draws: int, rng: random.Random) -> Iterator[Tree]:
    """States after these changes: nothing that was not waited for is there, all of it, names only, bytes only, and
    `draws` in between."""
    safe = _waited_for(changes)
    yield _apply(before, changes, safe, lambda change: False, None)
    yield _apply(before, changes, safe, lambda change: True, None)
    yield _apply(before, changes, safe, lambda change: isinstance(change, Name), None)
    yield _apply(before, changes, safe, lambda change: isinstance(change, Data), None)
    for _ in range(draws):
        yield _apply(before, changes, safe, lambda change: rng.random() < 0.5, rng)


def _waited_for(changes: Sequence[Change]) -> set[int]:
    """Places of the changes that were on the disk before the end."""
    synced: set[int] = set()
    safe: set[int] = set()
    for at in range(len(changes) - 1, -1, -1):
        change = changes[at]
        match change:
            case Sync(node=node):
                synced.add(node)
            case Data(file=file) if file in synced:
                safe.add(at)
            case Name(folder=folder) if folder in synced:
                safe.add(at)
            case _:
                pass
    return safe


def _apply(before: Tree, changes: Sequence[Change], safe: set[int], kept: Kept, torn: random.Random | None) -> Tree:
    """The tree with what is safe and what is kept; with `torn`, writes that nobody waited for are kept in parts."""
    tree = copy.deepcopy(before)
    tree.folders |= {c.node: {} for c in changes if isinstance(c, Name) and c.new_folder and c.node is not None}
    contents = {node: bytearray(content) for node, content in tree.files.items()}
    for at, change in enumerate(changes):
        match change:
            case Name() if at in safe or kept(change):
                _rename(tree, change)
            case Data() if at in safe or kept(change):
                _write(contents.setdefault(change.file, bytearray()), change, None if at in safe else torn)
            case _:
                pass
    tree.files = {node: bytes(content) for node, content in contents.items()}
    return tree


def _rename(tree: Tree, change: Name) -> None:
    if change.old is not None:
        tree.folders[change.old[0]].pop(change.old[1], None)
    names = tree.folders[change.folder]
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


def _write(content: bytearray, change: Data, torn: random.Random | None) -> None:
    if change.content is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    for start in range(0, len(change.content), SECTOR):
        if torn is None or torn.random() < 0.7:
            part, place = change.content[start : start + SECTOR], change.offset + start
            content.extend(bytes(max(0, place - len(content))))
            content[place : place + len(part)] = part


def write_tree(tree: Tree, root: Path, node: int = 0) -> None:
    """Put a tree on the disk, but for SQLite's shared memory, which no power cut outlives."""
    for name, child in tree.folders[node].items():
        if name.endswith("-shm"):
            continue
        if child in tree.folders:
            (root / name).mkdir()
            write_tree(tree, root / name, child)
        else:
            (root / name).write_bytes(tree.files.get(child, b""))


def _content(tree: Tree, node: int) -> tuple[object, ...]:
    names = sorted((name, child) for name, child in tree.folders[node].items() if not name.endswith("-shm"))
    return tuple(
        (name, _content(tree, child) if child in tree.folders else tree.files.get(child, b"")) for name, child in names
    )


def _some(found: list[tuple[int, Tree]], most: int) -> list[tuple[int, Tree]]:
    if len(found) <= most:
        return found
    return [found[(index + 1) * len(found) // most - 1] for index in range(most)]
