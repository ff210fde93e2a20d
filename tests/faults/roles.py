"""What a child of the worker does with its order."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

from incremental_llm.registry.objects import Failpoint, no_failpoint

from .concurrent import ROLES
from .operations import OPERATIONS, Operation
from .planted import plant
from .worker import Order
from .world import build, open_registry


def carry_out(order: Order) -> None:
    """Run an operation, or recover from it."""
    if order.file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.file_limit, resource.RLIM_INFINITY))
    if order.bug:
        plant(order.bug)
    root = Path(order.root)
    match order.step:
        case "act":
            ROLES[order.name](root, order.worker, order.count)
        case "recover":
            recover(root, OPERATIONS[order.name])
        case "hold":
            OPERATIONS[order.name].run(root, _holding_at(order.failpoint, root))
        case "fail":
            OPERATIONS[order.name].run(root, _failing_at(order.failpoint))
        case _:
            OPERATIONS[order.name].run(root, _dying_at(order.failpoint))


def recover(root: Path, operation: Operation) -> None:
    """What happens after a kill: somebody opens the registry, and gives the command again that was cut off."""
    with open_registry(root) as registry:
        registry.head()
    operation.resume(root)


def _dying_at(point: str) -> Failpoint:
    """A failpoint that is a kill -9."""
    if not point:
        return no_failpoint
    return lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None


def _failing_at(point: str) -> Failpoint:
    """A failpoint that is an error of the disk."""

    def fail(name: str) -> None:
        if name == point:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return fail


def _holding_at(point: str, root: Path) -> Failpoint:
    """A failpoint that never returns, and says in a file that it was reached."""

    def hold(name: str) -> None:
        if name == point:
            (root / "holding").touch()
            signal.pause()

    return hold


def warm_up() -> None:
    """Do everything once, so that a child imports nothing."""
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        build(template)
        for name, operation in OPERATIONS.items():
            root = Path(folder) / name
            shutil.copytree(template, root)
            operation.prepare(root)
            carry_out(Order(name, str(root)))
            recover(root, operation)
