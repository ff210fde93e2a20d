"""One run at a time in a workspace, whoever started it.

The one design fact: the lock belongs to the process, not to a file's existence, so a killed run never blocks the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from incremental_llm.artifacts import write_json
from incremental_llm.errors import WorkspaceBusyError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a workspace for one run.

    Raises:
        WorkspaceBusyError: someone else holds it; the message says who, where and since when.
    """
    holder = folder / "run.holder.json"
    try:
        lock = FileLock(folder / "run.lock", timeout=0).acquire()
    except Timeout:
        raise WorkspaceBusyError(
            f"{folder}: expected no other run, found {_described(holder)}. "
            "Wait until it ends and run again; it is safe to repeat."
        ) from None
    with lock:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _described(holder: Path) -> str:
    """Who holds the lock, as far as the file beside it tells: it is written just after the lock is taken."""
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, running since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "one that has just started or is about to end"
