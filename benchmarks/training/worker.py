"""One side of a measurement in a process of its own: it takes steps when told to, and says how long they took.

    python benchmarks/training/worker.py '{"row": "sft", "side": "ours", "steps": 8, "stack": [], "folder": "scratch"}'

Reads a number of steps a line from its input and answers with a line of JSON on its output: first what setting up took,
then each block's seconds (wall clock and CPU), losses, and the process's peak memory. A process holds one side, so that
peaks are its own and no side runs with what another one left warm.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import data
from training.rows import SHAPES, VARIANTS, Shape

from incremental_llm.adapters.load import load_tokenizer
from incremental_llm.base_models import resolve
from incremental_llm.training.batching import TokenExample
from incremental_llm.training.settings import LoraSettings, PhaseSettings, TrainingSettings

LEARNING_RATE = 2e-5  # of TRL's SFT by default


class Gate:
    """Where a trainer waits between blocks of steps: the time that it waits is nobody's."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is not an answer

    def open(self, **facts: Any) -> None:
        """Say what setting up took, and wait for the first block."""
        self._answer(facts)
        self._next_block()

    def passed(self, loss: float) -> None:
        """A step has ended; at the end of the block, answer and wait."""
        self._losses.append(loss)
        if len(self._losses) < self._steps:
            return
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._answer({"wall": wall, "cpu": cpu, "losses": self._losses, "peak_gib": peak})
        self._next_block()

    def _answer(self, facts: dict[str, Any]) -> None:
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()

    def _next_block(self) -> None:
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)  # from inside a trainer: there is nothing to save
        self._steps, self._losses = int(line), list[float]()
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def examples_of(shape: Shape, tokenizer: Any, steps: int) -> list[TokenExample]:
    """As many as the steps need where a reference is computed for each, all of the demo's chats otherwise."""
    count = shape.batch_size * steps
    if shape.lengths:
        return data.pairs(tokenizer, *shape.lengths, count)
    if shape.uniform:
        return data.uniform(tokenizer, shape.uniform, count)
    kinds = {"sft": "sft", "dpo": "pair", "kto": "unpaired"}
    found = data.chats(tokenizer, kinds[shape.objective])
    return found if shape.objective == "sft" else found[: max(count, 2 * shape.batch_size)]


def settings_of(shape: Shape, steps: int, examples: int, precision: str) -> TrainingSettings:
    """The product's defaults, for one phase of so many steps, without the anchor, which no rival has."""
    phase = PhaseSettings(
        objective=shape.objective,
        learning_rate=LEARNING_RATE,
        epochs=steps * shape.batch_size / examples,
        batch_size=shape.batch_size,
        saturated_below=0.0,
        warmup=0.0,  # TRL's first step has a learning rate of 0, ours has not
    )
    return TrainingSettings(
        seed=data.SEED,
        precision=precision,
        quantization=shape.quantization,
        lora=LoraSettings(),
        anchor={"weight": 0.0},
        phases=(phase,),
        save_steps=10_000,
    )


def main() -> None:
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    gate, shape, base = Gate(), SHAPES[told["row"]], resolve("smollm2-135m").folder
    tokenizer = load_tokenizer(base)
    examples = examples_of(shape, tokenizer, told["steps"])
    settings = settings_of(shape, told["steps"], len(examples), told["precision"])
    stack = [Path(folder) for folder in told["stack"]]
    if told["side"] == "ours":
        from training.ours import train
    else:
        from training.rival import train_with

        train = train_with(VARIANTS[told["row"]][told["side"]])
    train(gate, shape, base, stack, tokenizer, examples, settings, Path(told["folder"]))


if __name__ == "__main__":
    main()
