"""A trace of system calls as what it did to files: data, names, and what was waited for."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

OPTIONS = ("-xx", "-s", "4194304", "--inject=?sendfile:error=ENOSYS", "--inject=?copy_file_range:error=ENOSYS")
"""For strace: bytes are written down, and none is copied inside of the kernel, where they cannot be seen."""

_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_ARGUMENT = re.compile(r'(-?\w+)<([^>]*)>|"([^"]*)"|([^,\s]+)')


@dataclass(frozen=True)
class Data:
    """Bytes at an offset of a file; without bytes its new size."""

    file: int
    offset: int
    content: bytes | None


@dataclass(frozen=True)
class Name:
    """A name in a folder and the file or folder that it means now, or None.

    `old` is the name it had, (folder, name); `new_folder` says that a folder was made.
    """

    folder: int
    name: str
    node: int | None
    old: tuple[int, str] | None = None
    new_folder: bool = False


@dataclass(frozen=True)
class Sync:
    """The content of a file, or the names in a folder, are on the disk."""

    node: int


Change = Data | Name | Sync


@dataclass
class Tree:
    """Files and folders by number; 0 is the root."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Tree:
        """What is on the disk, all of it flushed."""
        tree = cls()
        for path in sorted(root.rglob("*")):
            folder, name = tree.place(path.relative_to(root))
            tree.folders[folder][name] = node = tree.fresh()
            if path.is_dir():
                tree.folders[node] = {}
            else:
                tree.files[node] = path.read_bytes()
        return tree

    def fresh(self) -> int:
        """A number that nothing has."""
        return len(self.folders) + len(self.files)

    def place(self, path: PurePosixPath) -> tuple[int, str]:
        """The folder of a path, and its name there."""
        folder = 0
        for part in path.parts[:-1]:
            folder = self.folders[folder][part]
        return folder, path.name

    def find(self, path: PurePosixPath) -> int | None:
        """What a path means, or None."""
        if not path.parts:
            return 0
        folder, name = self.place(path)
        return self.folders[folder].get(name)


def changes_in(log: Path, root: Path, before: Tree) -> list[Change]:
    """What a traced process did below `root`, where there was `before`."""
    return list(_Reader(root, copy.deepcopy(before)).read(log))


class _Reader:
    def __init__(self, root: Path, tree: Tree) -> None:
        self._root = root
        self._tree = tree
        self._places: dict[str, int] = {}  # of an open file, by the number that it is open under

    def read(self, log: Path) -> Iterator[Change]:
        for line in log.read_text(encoding="ascii").splitlines():
            call = _CALL.match(line)
            if call is None or int(call[3]) < 0:
                continue
            arguments = list(_ARGUMENT.finditer(call[2]))
            try:
                made = list(self._changes(call[1], arguments, int(call[3])))
            except _Elsewhere:
                continue
            yield from made

    def _changes(self, name: str, found: list[re.Match[str]], result: int) -> Iterator[Change]:
        match name:
            case "openat":
                path = self._path(found, 1)
                flags = found[2][0]
                self._places[str(result)] = 0
                if self._tree.find(path) is None and "O_CREAT" in flags:
                    yield self._make(path, folder=False)
                elif "O_TRUNC" in flags:
                    yield Data(self._node(path), 0, None)
            case "mkdir" | "mkdirat":
                yield self._make(self._path(found, len(found) - 2), folder=True)
            case "write":
                number, at = found[0][1], self._places.get(found[0][1], 0)
                self._places[number] = at + result
                yield Data(self._opened(found[0]), at, _bytes(found[1][3])[:result])
            case "pwrite64":
                yield Data(self._opened(found[0]), int(found[3][0]), _bytes(found[1][3])[:result])
            case "ftruncate":
                yield Data(self._opened(found[0]), int(found[1][0]), None)
            case "fsync" | "fdatasync":
                yield Sync(self._opened(found[0]))
            case "rename" | "renameat" | "renameat2":
                first, second = (at for at, one in enumerate(found) if one[3] is not None)
                yield self._move(self._path(found, first), self._path(found, second))
            case "unlink" | "unlinkat" | "rmdir":
                folder, last = self._tree.place(
                    self._path(found, next(i for i, o in enumerate(found) if o[3] is not None))
                )
                self._tree.folders[folder].pop(last)
                yield Name(folder, last, None)
            case "fallocate":
                pass  # of SQLite's shared memory, which no power cut outlives
            case _:
                raise AssertionError(f"expected a call that the model knows, found {name}")

    def _make(self, path: PurePosixPath, *, folder: bool) -> Name:
        parent, name = self._tree.place(path)
        self._tree.folders[parent][name] = node = self._tree.fresh()
        if folder:
            self._tree.folders[node] = {}
        else:
            self._tree.files[node] = b""
        return Name(parent, name, node, new_folder=folder)

    def _move(self, source: PurePosixPath, target: PurePosixPath) -> Name:
        old, (folder, name) = self._tree.place(source), self._tree.place(target)
        self._tree.folders[folder][name] = node = self._tree.folders[old[0]].pop(old[1])
        return Name(folder, name, node, old)

    def _path(self, found: list[re.Match[str]], at: int) -> PurePosixPath:
        """The path of an argument, relative to the root; one that begins nowhere begins in the folder before it."""
        path = PurePosixPath(_bytes(found[at][3]).decode())
        if at and found[at - 1][2] is not None:
            path = PurePosixPath(_bytes(found[at - 1][2]).decode()) / path
        return self._relative(path)

    def _opened(self, argument: re.Match[str]) -> int:
        if argument[2] is None:
            raise _Elsewhere
        return self._node(self._relative(PurePosixPath(_bytes(argument[2]).decode())))

    def _relative(self, path: PurePosixPath) -> PurePosixPath:
        if not path.is_relative_to(self._root):
            raise _Elsewhere
        return path.relative_to(self._root)

    def _node(self, path: PurePosixPath) -> int:
        node = self._tree.find(path)
        assert node is not None, f"expected {path} to be there"
        return node


class _Elsewhere(Exception):
    """A file that is not ours."""


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
