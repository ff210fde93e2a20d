"""Being told to end: SIGTERM becomes a checkpoint after the step at hand, and an exit code of its own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from incremental_llm.errors import TrainingInterrupted


class Interruption:
    """Whether this process has been told to end; `listening` makes SIGTERM say so."""

    def __init__(self) -> None:
        self.told = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGTERM ends nothing by itself. Only the main thread can listen; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._tell)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        self.told = True

    def agree(self) -> bool:
        """Whether any process has been told to end; then all have. To be called by all of them at the same place."""
        state = PartialState()
        if state.num_processes > 1:
            self.told = bool(reduce(torch.tensor(float(self.told), device=state.device), "sum") > 0)
        return self.told

    def check(self, where: str) -> None:
        """Raises TrainingInterrupted if any process has been told to end."""
        if self.agree():
            raise TrainingInterrupted(f"told to end {where}. What is finished is kept: the same command continues.")


class StopWhenTold(TrainerCallback):  # type: ignore[misc]
    """Save and stop after the step at hand."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._interruption.agree():
            control.should_save = control.should_training_stop = True
