"""One increment on several processes: the first leads, the others train with it.

    exit_code = run_together(lead)      # on every process; lead(train) is called on the first one alone

The one design fact: only `lead` sees registry and database. It gets a `train` that hands its arguments to the other
processes, which call `train_increment` beside it and know nothing else: they wait for arguments, or for the end.

Exit codes: the first process ends with what `lead` returned, the others with 0. A launcher sees any other number than 0
as a failure, ends all processes and returns 1 itself; what the first process returned is in its table of failures.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from incremental_llm.adapters.sharding import sharding
from incremental_llm.errors import IncrementalError, NothingToTrainError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
Train = Callable[..., Any]

_PATIENCE = timedelta(
    days=7
)  # the others wait while the first compiles and measures; a dead process ends the job anyway


@dataclass(frozen=True)
class _Order:
    """What the first process tells the others: train with these arguments, or end with this exit code."""

    arguments: dict[str, Any] | None = None
    exit_code: int = 0


def agreed(value: _T) -> _T:
    """The first process's `value`, on every process; it must be picklable. With one process, `value` itself.

    For whatever is read from the disk or compared with a threshold: two processes must not take different branches.
    """
    if PartialState().num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]


def run_together(lead: Callable[[Train], int]) -> int:
    """Run `lead(train)` on the first process and train with it on the others; returns this process's exit code.

    An IncrementalError is printed and becomes its exit code. Any other error is raised. Either way the process ends
    with a number other than 0, upon which the launcher ends the rest.
    """
    try:
        sharding()  # before accelerate's state, which would take the model in hand itself
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        code = _lead(lead) if state.is_main_process else _follow(state.process_index)
    except IncrementalError as error:
        state = PartialState()
        where = "" if state.num_processes == 1 else f"process {state.process_index}: "
        print(f"error: {where}{error}", file=sys.stderr, flush=True)
        return error.exit_code
    gc.collect()  # trainers are cycles: what holds the group must be gone before it is
    state.destroy_process_group()
    return code


def end_process(code: int) -> NoReturn:
    """End a process of several with `code`; call it last in a script that `accelerate launch` starts.

    The interpreter is not taken down: threads of the communication library that want its lock just then abort the
    process now and then ("terminate called without an active exception", seen on a busy machine), and the
    launcher reports a promoted night as a failure.
    """
    if PartialState().num_processes == 1:
        sys.exit(code)
    if code:
        time.sleep(1)  # the launcher kills the others as soon as one ends with another number than 0: let them end
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@dataclass
class _Leader:
    """`train_increment` on all processes, called on the first."""

    together: bool = field(default=False, init=False)

    def train(self, **arguments: Any) -> Any:
        from incremental_llm.training.increment import train_increment

        agreed(_Order({key: value for key, value in arguments.items() if key != "progress"}))
        self.together = True
        try:
            result = train_increment(**arguments)
        except NothingToTrainError:  # decided alike on every process: all are out of it
            self.together = False
            raise
        self.together = False
        return result


def _lead(lead: Callable[[Train], int]) -> int:
    leader = _Leader()
    try:
        code = lead(leader.train)
    except Exception as error:
        # In the middle of training the others wait for gradients and could not understand a message: there it is this
        # process's end that ends them.
        if not leader.together:
            agreed(_Order(exit_code=getattr(error, "exit_code", 1)))
        raise
    agreed(_Order())
    return code


def _follow(rank: int) -> int:
    """Train whatever the first process trains, in silence, until it says stop."""
    from incremental_llm.training.increment import train_increment

    logging.getLogger("incremental_llm").setLevel(logging.ERROR)  # the first process says it once
    while True:
        order = agreed(_Order())
        if order.arguments is None:
            if order.exit_code:
                log.error("process %d ends: the first process failed", rank)
            return order.exit_code
        try:
            train_increment(**order.arguments)
        except NothingToTrainError:
            continue  # the first process raises it too, and says what follows
