"""A process that has everything imported, and forks a child for each order: a fault costs milliseconds, not an import.

    with Worker() as worker:
        child = worker.start(Order("commit", root))
        worker.wait(child)                      # Ending.DONE, or how it ended

Run as a script it is that process: an order a line comes in as JSON, and a line goes out for each.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


class Ending(IntEnum):
    """How a child ended: its exit status."""

    KILLED = -9
    DONE = 0
    FAILED = 3
    """CommitError or InputError: nothing was changed."""
    UNKNOWN = 4
    """CommitStateUnknown."""
    OTHER = 5
    """Another error of the project, or of the operating system."""
    FOREIGN = 6
    """An error of a library, which nobody is told how to handle."""


@dataclass(frozen=True)
class Order:
    """`step`: "run" an operation, "fail" or "hold" it at its failpoint, "recover" from what was left, or "act" a role.

    Roles are those of `concurrent`, done as `worker`, `count` times. `traced`: wait for a tracer first. `failpoint`:
    one that runs is killed there. `bug` is planted first. `file_limit` bounds the size of every file, in bytes: a write
    beyond it is cut short. `errors` is a file for what went wrong.
    """

    name: str
    root: str
    step: str = "run"
    traced: bool = False
    bug: str = ""
    file_limit: int = 0
    failpoint: str = ""
    errors: str = "/dev/null"
    worker: int = 0
    count: int = 0


class Worker:
    """The process, seen from the test."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def start(self, order: Order) -> int:
        """Begin; returns the process id."""
        return self._ask({"order": asdict(order)})

    def wait(self, child: int) -> Ending:
        """Wait for a child's end."""
        return Ending(self._ask({"wait": child}))

    def run(self, order: Order) -> Ending:
        """Begin, and wait for the end."""
        return self.wait(self.start(order))

    def _ask(self, request: dict[str, object]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Fork for each order until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            _child(Order(**request["order"]))
        print(answer, flush=True)


def _child(order: Order) -> None:
    """Carry out an order, and exit with what came of it."""
    import traceback

    from .roles import carry_out

    ending = Ending.FOREIGN
    told = os.open(order.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if order.traced:
            _wait_for_tracer()
        carry_out(order)
        ending = Ending.DONE
    except BaseException as error:
        ending = ending_of(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with contextlib.suppress(OSError):  # of which the next write may be one more
            os.writev(told, [traceback.format_exc().encode()])  # `write` is what faults are injected into
    os._exit(ending)


def ending_of(error: BaseException) -> Ending:
    """What the user of an operation is told by this error."""
    from incremental_llm.errors import CommitError, CommitStateUnknown, IncrementalError, InputError

    if isinstance(error, CommitStateUnknown):
        return Ending.UNKNOWN
    if isinstance(error, CommitError | InputError):
        return Ending.FAILED
    return Ending.OTHER if isinstance(error, IncrementalError | OSError) else Ending.FOREIGN


def _wait_for_tracer() -> None:
    status = Path("/proc/self/status")
    while "\nTracerPid:\t0\n" in status.read_text(encoding="ascii"):
        time.sleep(0.001)
    time.sleep(0.002)  # the tracer is attached, and stops this process a moment later


if __name__ == "__main__":
    from .roles import warm_up

    warm_up()
    serve()
