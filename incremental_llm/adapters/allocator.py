"""Memory that is used again instead of being given back: glibc's allocator, told what a training process does.

By default, glibc maps every large buffer anew and returns it when it is freed, so that each step of training, and each
batch of an evaluation, has the system clear the same gigabytes again: up to half of the time on a CPU.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h
_AT_A_TIME = 256 * 2**20  # bytes by which the heap grows


@cache
def keep_freed_memory() -> bool:
    """Keep what this process frees for its own next use; whether the C library can. Other libraries are left alone."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _AT_A_TIME))
    taken = [mallopt(option, value) for option, value in wanted]  # each of them, also after one that was refused
    return taken == [1, 1, 1]
