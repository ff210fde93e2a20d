"""A folder that somebody else filled: its names are judged first, and a file is read once, within a size.

The one design fact: the folder is held open, and files are opened below it by name, never through a link. What is
swapped meanwhile cannot lead out of the folder, and what was read is what is checked and written.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from incremental_llm.adapters.foreign.quote import quoted
from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE
from incremental_llm.artifacts import MANIFEST
from incremental_llm.errors import InputError, IntegrityError

TOKENIZER_FILES = frozenset(
    (
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    )
)
_TEXTS = frozenset(("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", ".gitattributes"))
_OURS = frozenset((MANIFEST, "training.json", "export.json", "lineage.json", "import.json"))  # of this project
_KNOWN = {CONFIG_FILE, WEIGHTS_FILE} | TOKENIZER_FILES | _TEXTS | _OURS
_KNOWN_FOLDED = {name.casefold(): name for name in _KNOWN}
_REASONS = {
    r"\.(bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz|msgpack|h5)": "a pickle or its like, which can run code when it is "
    "read; save weights with safe_serialization=True, and leave optimizer states and training_args.bin out",
    r"\.(py|pyc|pyd|so|dll|dylib|sh|exe|js|whl|egg)": "code; an adapter is data alone",
    r"\.safetensors": f"a second weights file; {WEIGHTS_FILE} is the only one that PEFT reads",
    r"\.(zip|tar|gz|tgz|xz|zst|7z)": "an archive; unpack what is needed",
}


class ForeignFolder:
    """A folder held open, whose names are all allowed and whose entries were plain files when they were listed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.names = _plain_names(path, descriptor)

    @contextlib.contextmanager
    def open(self, name: str, largest: int) -> Iterator[tuple[BinaryIO, int]]:
        """A file of the folder and its size in bytes, which is at most `largest`.

        Raises:
            InputError: it is larger, or no plain file any more.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would block for ever
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            raise InputError(
                f"{self.path / name}: expected a file to read ({error.strerror}). Copy it again."
            ) from error
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            _require_plain(self.path, name, found)
            if found.st_size > largest:
                raise InputError(
                    f"{self.path / name}: expected at most {largest:,} bytes, more than any LoRA for this base needs, "
                    f"found {found.st_size:,}. Nothing of it was read: it is not what it says."
                )
            yield stream, found.st_size

    def read(self, name: str, largest: int) -> bytes:
        """All bytes of a file, at most `largest`; raises as `open`, and IntegrityError where it changes meanwhile."""
        with self.open(name, largest) as (stream, size):
            return read_exactly(stream, size, self.path / name, last=True)


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[ForeignFolder]:
    """The folder of a stranger's adapter.

    Raises:
        InputError: no folder; a name that is not on the list; a link, folder, pipe or device in it; a file missing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"{path}: expected the folder of a PEFT adapter, found none ({error.strerror}). Check the path."
        ) from error
    try:
        yield ForeignFolder(path, descriptor)
    finally:
        os.close(descriptor)


def read_exactly(stream: BinaryIO, count: int, path: Path, *, last: bool = False) -> bytes:
    """The next `count` bytes; with `last`, nothing may come after them.

    Raises:
        IntegrityError: fewer, or more.
    """
    data = stream.read(count)
    if len(data) != count or (last and stream.read(1)):
        raise IntegrityError(
            f"{path}: expected {count:,} bytes as it said when it was opened, found "
            f"{'more' if len(data) == count else f'{len(data):,}'}. "
            "The file changes while it is read: wait until it is complete, and copy the folder."
        )
    return data


def _plain_names(path: Path, descriptor: int) -> frozenset[str]:
    names: set[str] = set()
    with os.scandir(descriptor) as entries:
        for entry in entries:
            _require_known(path, entry.name)
            _require_plain(path, entry.name, entry.stat(follow_symlinks=False))
            names.add(entry.name)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise InputError(f"{path}: expected {CONFIG_FILE} and {WEIGHTS_FILE}, found no {name}. Check the path.")
    return frozenset(names)


def _require_known(path: Path, name: str) -> None:
    if name in _KNOWN:
        return
    if (meant := _KNOWN_FOLDED.get(name.casefold())) is not None:
        reason = f"which is not {meant}: the letters differ in case, and systems disagree on which of two is read"
    elif name.startswith("."):
        reason = "a hidden name"
    elif not name.isascii() or not name.isprintable() or "\\" in name or ":" in name:
        reason = "a name that looks like another one, or means a path elsewhere"
    else:
        matches = (why for suffix, why in _REASONS.items() if re.search(rf"{suffix}$", name, re.IGNORECASE))
        reason = next(matches, "a name that is not on the list of an adapter's files")
    raise InputError(
        f"{path}: expected only the files of a PEFT adapter, found {quoted(name)}: {reason}. Nothing of it was read. "
        f"Copy {CONFIG_FILE} and {WEIGHTS_FILE} to a folder of their own."
    )


def _require_plain(path: Path, name: str, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISREG, "one of several hard links to a file"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    kind = next((words for holds, words in kinds if holds(found.st_mode)), "a device")
    raise InputError(
        f"{path}: expected plain files of its own, found {quoted(name)}: {kind}, which can lead out of it. "
        "Copy the contents: cp --dereference FILE NEW_FOLDER/"
    )
