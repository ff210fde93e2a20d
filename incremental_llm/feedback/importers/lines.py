"""Blocks of lines of a growing file, each with how far the file is read after it; and what is made of them elsewhere.

A block is what one transaction takes. A line that is too long is passed over in pieces, so memory stays flat.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

_PIECE = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """The first `offset` bytes of a file, which hold `lines` lines, and their sha256."""

    offset: int
    lines: int
    digest: str


@dataclass(frozen=True, slots=True)
class Block:
    """Lines from the number `first` on, a line that is too long as its size in bytes.

    `after` is None for a last line without its end: it may still be being written.
    """

    first: int
    lines: tuple[bytes | int, ...]
    end: int
    after: Place | None


class LineReader:
    """The lines of `stream` from where it stands: `offset` bytes of `number` lines are in `digest` already."""

    def __init__(self, stream: BinaryIO, digest: hashlib._Hash, offset: int, number: int, longest: int) -> None:
        self._stream, self._longest = stream, longest
        self._digest, self._offset, self._number = digest, offset, number

    def blocks(self, most_lines: int, most_bytes: int) -> Iterator[Block]:
        """Blocks of at most so many lines, ended by the line that brings them to so many bytes."""
        while True:
            start, first, lines = self._offset, self._number + 1, list[bytes | int]()
            open_line: bytes | int = b""
            while len(lines) < most_lines and self._offset - start < most_bytes:
                line, ended = self._next()
                if not ended:
                    open_line = line
                    break
                lines.append(line)
            if lines:
                after = Place(self._offset, self._number, self._digest.hexdigest())
                yield Block(first, tuple(lines), self._offset, after)
            if open_line:
                size = open_line if isinstance(open_line, int) else len(open_line)
                yield Block(self._number + 1, (open_line,), self._offset + size, None)
            if open_line or not lines:
                return

    def _next(self) -> tuple[bytes | int, bool]:
        """The next line, or its size, and whether it has its end; empty at the end of the file."""
        raw = self._stream.readline(self._longest + 1)
        if raw.endswith(b"\n") and len(raw) <= self._longest:
            self._digest.update(raw)
            self._offset += len(raw)
            self._number += 1
            return raw, True
        if len(raw) <= self._longest:
            return raw, False
        size, digest = 0, self._digest.copy()
        while raw:
            size += len(raw)
            digest.update(raw)
            if raw.endswith(b"\n"):
                self._digest, self._offset, self._number = digest, self._offset + size, self._number + 1
                return size, True
            raw = self._stream.readline(_PIECE)
        return size, False


def in_order(work: Callable[[Block], T], blocks: Iterable[Block], processes: int) -> Iterator[tuple[Block, T]]:
    """`work` on each block, in other processes where there are to be any; a few blocks are under way at a time.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a process ended by itself.
    """
    if processes < 1:
        yield from ((block, work(block)) for block in blocks)
        return
    # A fork would carry over the locks of this process's threads, and connections that it must not use.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: deque[tuple[Block, Future[T]]] = deque()
        try:
            for block in blocks:
                under_way.append((block, pool.submit(work, block)))
                if len(under_way) > 2 * processes:
                    done, result = under_way.popleft()
                    yield done, result.result()
            while under_way:
                done, result = under_way.popleft()
                yield done, result.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
