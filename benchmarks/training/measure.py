"""Two or more sides step in turns, each in its process; a figure is the median of the ratios of their turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "worker.py"
ROOT = WORKER.parent.parent.parent


@dataclass(frozen=True)
class Side:
    """`name` in the table; `uses`: "ours", or one of TRL's variants; `stack`: the adapters below the trained one.

    `precision` is that of ours; a variant has its own.
    """

    name: str
    uses: str
    stack: tuple[Path, ...] = ()
    precision: str = "fp32"


@dataclass
class Turns:
    """What a side did: a block a turn, warm-up left out. `setup` is what it said before its first step."""

    setup: dict[str, Any]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_gib: float = 0.0


@dataclass(frozen=True)
class Ratio:
    """Median and range of the rival's seconds over ours, turn by turn; above 1 is faster."""

    median: float
    low: float
    high: float


def ratio(rival: Sequence[float], ours: Sequence[float]) -> Ratio:
    found = [theirs / mine for theirs, mine in zip(rival, ours, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


class Process:
    """A side in its process, waiting until it is told to step."""

    def __init__(self, row: str, side: Side, steps: int, threads: int, folder: Path) -> None:
        told = {
            "row": row,
            "side": side.uses,
            "steps": steps,
            "stack": [str(path) for path in side.stack],
            "folder": str(folder),
            "threads": threads,
            "precision": side.precision,
        }
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_DISABLE": "1",
        }
        self._side, self._log = side, (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self.setup = self._answer()

    def step(self, steps: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self._side.name} failed:\n{self._log.read()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(
    row: str, sides: Sequence[Side], *, turns: int, steps: int, warmup: int = 1, threads: int = 1, say: Any = print
) -> dict[str, Turns]:
    """Every side steps `steps` times a turn, A B A B; `warmup` steps before that are not timed.

    The losses of all steps are kept, those of the warm-up too. All sides must hold the same tokens in every step.
    """
    with tempfile.TemporaryDirectory() as temporary:
        processes: dict[str, Process] = {}
        try:
            for number, side in enumerate(sides):
                say(f"{row}: preparing {side.name}")
                folder = Path(temporary) / str(number)
                folder.mkdir()
                processes[side.name] = Process(row, side, warmup + turns * steps + 1, threads, folder)
            found = {name: Turns(process.setup) for name, process in processes.items()}
            if len({one.setup["digest"] for one in found.values()}) > 1:
                raise SystemExit(f"{row}: the sides do not train on the same rows")
            for turn in range(turns + 1):
                for name, process in processes.items():
                    block = process.step(steps if turn else warmup)
                    found[name].losses += block["losses"]
                    found[name].peak_gib = block["peak_gib"]
                    if turn:
                        found[name].wall.append(block["wall"] / steps)
                        found[name].cpu.append(block["cpu"] / steps)
                    seconds = f"{block['wall'] / len(block['losses']):.2f} s a step"
                    say(f"{row}: {'turn ' + str(turn) if turn else 'warm-up'}, {name}: {seconds}")
        finally:
            for process in processes.values():
                process.close()
    return found
