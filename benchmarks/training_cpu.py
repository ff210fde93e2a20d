"""Training speed on a CPU, side by side with TRL on the same token ids, with the real SmolLM2-135M.

    python benchmarks/training_cpu.py [--pairs 5] [--only ROW ... [--keep]] [--no-search] [--quick] [--threads 1]

For each row TRL runs as shipped and with the best of its options, which are searched first; then the sides step in
turns, A B A B, each in its own process, and a figure is the median of the ratios with its range. Both sides train the
same rows in every optimizer step. Ours is the product's own path, without the anchor, which no rival has, in bf16 where
the machine computes it natively and else in fp32; TRL's options are searched in both where both make sense. The losses
are compared in fp32 everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from record import RESULTS, record
from training.figures import NIGHT, after_merging, loss_gap, spread
from training.measure import Side, Turns, take_turns
from training.rows import BEST, SHAPES, Precision, shipped, tried

from incremental_llm.adapters.load import native_dtype
from incremental_llm.base_models import resolve

ROWS = ("sft", "depth", "dpo_300_100", "dpo_100_400", "kto", "qlora", "uniform", "losses")
DEPTHS = (0, 4, 16)
LOSS_STEPS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side that are timed")
    parser.add_argument("--only", choices=ROWS, nargs="+", help="these rows; their figures are printed and not kept")
    parser.add_argument("--keep", action="store_true", help="keep the figures of --only beside those kept before")
    parser.add_argument("--no-search", action="store_true", help="TRL's options that an earlier search found best")
    parser.add_argument("--quick", action="store_true", help="one turn, no search, 2 losses; nothing is kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: beside other work")
    arguments = parser.parse_args()
    run = Run(arguments.pairs, arguments.threads, arguments.clock, arguments.quick)
    run.search = not arguments.no_search
    for row in arguments.only or ROWS:
        run.row(row)
        if arguments.keep and not arguments.quick:
            _keep(arguments, run.figures)
    run.print_tables()
    if not arguments.only and not arguments.quick:
        record("training_cpu", run.figures, _command(arguments))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    words = [f"python benchmarks/training_cpu.py --pairs {arguments.pairs} --threads {arguments.threads}"]
    words += ["--clock cpu"] if arguments.clock == "cpu" else []
    return " ".join([*words, *(["--no-search"] if arguments.no_search else [])])


def _keep(arguments: argparse.Namespace, figures: dict[str, float]) -> None:
    """Record these figures and those that an earlier call kept."""
    path = RESULTS / "training_cpu.json"
    before = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    record("training_cpu", before | figures, _command(arguments))


class Run:
    """One measurement: figures by name, and every option that was tried with its seconds a step."""

    def __init__(self, pairs: int, threads: int, clock: str, quick: bool) -> None:
        self.pairs, self.threads, self.clock, self.quick = (1 if quick else pairs), threads, clock, quick
        self.figures: dict[str, float] = {}
        self.tried: dict[str, dict[str, float]] = {}
        self.search = True
        self.native: Precision = "bf16" if native_dtype() == "bfloat16" else "fp32"
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.0f} s] {text}", flush=True)

    def row(self, row: str) -> None:
        if row == "losses":
            self._losses()
        elif row == "depth":
            self._depth()
        else:
            self._against_trl(row)

    def _against_trl(self, row: str) -> None:
        best = self._best(row)
        sides = [self._ours("ours"), Side("tuned", best)]
        if row in {"sft", "qlora"}:
            sides.append(Side("shipped", shipped(self.native)))
        found = self._turns(row, sides)
        name = "uniform_control" if row == "uniform" else f"{row}_vs_tuned"
        self._keep(name, found["tuned"], found["ours"])
        if "shipped" in found:
            self._keep(f"{row}_vs_shipped", found["shipped"], found["ours"])
        if "dpo" in row:
            ratio = found["tuned"].setup["reference"] / found["ours"].setup["reference"]
            self.figures[f"{row}_reference_vs_tuned"] = ratio
        for side, turns in found.items():
            self.figures[f"seconds_{row}_{side}"] = statistics.median(getattr(turns, self.clock))
            self.figures[f"peak_gib_{row}_{side}"] = turns.peak_gib

    def _depth(self) -> None:
        """A stack of 0, 4 and 16 adapters below the trained one; TRL trains on the base that PEFT merged them into."""
        with tempfile.TemporaryDirectory() as folder:
            from training.ours import make_stack

            self.say(f"depth: making {DEPTHS[-1]} adapters")
            stack = tuple(make_stack(resolve("smollm2-135m").folder, DEPTHS[-1], Path(folder)))
            sides = [self._ours(f"ours on {depth}", stack[:depth]) for depth in DEPTHS]
            sides += [Side(f"tuned on {depth}", self._known("depth"), stack[:depth]) for depth in DEPTHS[1:]]
            found = self._turns("depth", sides)
        for depth in DEPTHS[1:]:
            ours, rival = found[f"ours on {depth}"], found[f"tuned on {depth}"]
            self._keep(f"depth{depth}_vs_depth0", ours, found["ours on 0"])  # a cost: the deeper one's seconds
            self._keep(f"sft_depth{depth}_vs_tuned", rival, ours, merged=True)
            self.figures[f"seconds_fold_depth{depth}_ours"] = ours.setup["load"]
            self.figures[f"seconds_merge_depth{depth}_tuned"] = rival.setup["load"]
            self.figures[f"peak_gib_depth{depth}_ours"] = ours.peak_gib

    def _losses(self) -> None:
        """Both sides from the same start for 20 steps: the largest difference of their losses."""
        for row in ("sft", "dpo", "kto"):
            sides = [Side("ours", "ours"), Side("tuned", BEST[row])]
            steps = 2 if self.quick else LOSS_STEPS
            found = take_turns(row, sides, turns=1, steps=steps - 1, threads=self.threads, say=self.say)
            self.figures[f"loss_gap_{row}"] = loss_gap(found["ours"], found["tuned"])

    def _best(self, row: str) -> str:
        """The fastest of the options tried, in turns of their own; shown at the end."""
        if self.quick or not self.search:
            return self._known(row)
        seconds: dict[str, float] = {}
        for name in tried(row, self.native):  # one process at a time: so many would not fit
            (turns,) = take_turns(
                row, [Side(name, name)], turns=2, steps=SHAPES[row].steps, threads=self.threads, say=self.say
            ).values()
            seconds[name] = min(getattr(turns, self.clock))
        self.tried[row] = seconds
        return min(seconds, key=lambda name: seconds[name])

    def _ours(self, name: str, stack: tuple[Path, ...] = ()) -> Side:
        return Side(name, "ours", stack, self.native)

    def _known(self, row: str) -> str:
        """What an earlier search found best, in what this machine computes natively."""
        return BEST[row] if self.native == "fp32" else f"{BEST[row]}, bf16"

    def _turns(self, row: str, sides: list[Side]) -> dict[str, Turns]:
        return take_turns(row, sides, turns=self.pairs, steps=SHAPES[row].steps, threads=self.threads, say=self.say)

    def _keep(self, name: str, rival: Turns, ours: Turns, *, merged: bool = False) -> None:
        """Median, low and high of a ratio of seconds; `merged`: with what loading and merging cost over a night."""
        theirs, mine = ((after_merging(t, self.clock) if merged else getattr(t, self.clock)) for t in (rival, ours))
        self.figures |= spread(name, theirs, mine)
        other = "cpu" if self.clock == "wall" else "wall"
        check = spread(name, getattr(rival, other), getattr(ours, other))[name]
        self.say(f"{name}: {self.figures[name]:.2f} by the {self.clock} clock, {check:.2f} by the {other} clock")

    def print_tables(self) -> None:
        for row, seconds in self.tried.items():
            print(f"\nTRL on the row {row}, seconds a step (the better of two turns):")
            for name, value in sorted(seconds.items(), key=lambda entry: entry[1]):
                print(f"  {value:8.2f}  {name}")
        print(f"\nFigures (ratios: the rival's seconds over ours; merging counted over {NIGHT} steps):")
        for name, value in self.figures.items():
            print(f"  {name:40} {value:.6g}")


if __name__ == "__main__":
    raise SystemExit(main())
