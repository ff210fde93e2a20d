"""Nightly increments against full retraining and online micro-updates, on the same nights of feedback.

    python benchmarks/processes.py [--seed 0] [--out processes]     # the demo's three good nights; hours on a CPU
    python benchmarks/processes.py --data FOLDER                    # other nights
    python benchmarks/processes.py --quick                          # a random model, a few steps; nothing is recorded

Each process has a workspace of its own below OUT/seedN. After each night all suites are measured: what was learnt, what
is left of earlier nights, and what is general. `seconds` are those from a night's feedback to weights: compiling and
training of an increment or a retraining, all updates of the night together online, where `update_seconds` is the
median time from a batch of feedback to its weights. Scores are those of the night's candidate, promoted or not.

FOLDER holds one *.jsonl a night, in the order of their names, a folder `suites`, and `suites.json`: {suite: the night
that teaches it}, 0 for what is there from the start. A night that is decided is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import record

from incremental_llm.artifacts import write_json
from incremental_llm.cli.console import progress_reporter
from incremental_llm.config import RunConfig, load_config
from incremental_llm.errors import NothingToTrainError
from incremental_llm.evaluation import EvaluationReport
from incremental_llm.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "recipes" / "demo"
RECIPES = {"increment": "nightly_smollm2_cpu.yaml", "retrain": "retrain_smollm2_cpu.yaml"}
GOOD_NIGHTS = 3  # the demo's fourth night is false, and a gate's business
QUICK = {"shop_night3": 0, "shop_night1": 1, "shop_night2": 2}


@dataclass(frozen=True)
class Data:
    """Logs in order, the folder of suites, and the night that teaches each."""

    logs: tuple[Path, ...]
    suites: Path
    taught: dict[str, int]


def demo_data() -> Data:
    sys.path.insert(0, str(DEMO))
    from run_nights import SUITES, logs

    return Data(tuple(logs()[:GOOD_NIGHTS]), ROOT / "eval_suites", dict(SUITES))


def data_of(folder: Path) -> Data:
    taught = json.loads((folder / "suites.json").read_text(encoding="utf-8"))
    return Data(tuple(sorted(folder.glob("*.jsonl"))), folder / "suites", taught)


def config_of(arguments: argparse.Namespace, data: Data, process: str, night: int, base: str | None) -> RunConfig:
    """The process's recipe, with the roles that the suites have on this night."""
    roles = {
        "new": [name for name, taught in data.taught.items() if taught == night],
        "old": [name for name, taught in data.taught.items() if taught < night],
        "watch": [name for name, taught in data.taught.items() if taught > night],
    }
    few = [f"training.phases.{place}.max_steps=2" for place in range(3)] if arguments.quick else []
    return load_config(
        ROOT / "recipes" / RECIPES.get(process, RECIPES["increment"]),
        [
            f"workspace={arguments.out / f'seed{arguments.seed}' / process}",
            f"training.seed={arguments.seed}",
            f"suites.folder={data.suites}",
            'compile.policy_reviewers=["r1"]',
            *(f"suites.{role}={json.dumps(names)}" for role, names in roles.items()),
            *([f"base={base}", "training.precision=fp32", "gate.margins={}"] if base else []),
            *few,
            *arguments.set,
        ],
    )


def run_night(config: RunConfig, log: Path, progress: Any) -> dict[str, Any]:
    """One increment or retraining on everything up to this log."""
    with Workspace.create(config, say=progress.say) as workspace:
        workspace.import_feedback(log)
        try:
            done = workspace.run(progress)
        except NothingToTrainError as nothing:
            progress.say(str(nothing))
            return {"promoted": 0.0}
        made = {name: done.stage_seconds[name] for name in ("compile", "train")}
        told = {"promoted": float(done.decision == "promoted"), "seconds": sum(made.values()), "tokens": done.tokens}
        return told | scores_of(done.candidate, config)


def run_online(config: RunConfig, logs: Sequence[Path], steps: int, batch: int, progress: Any) -> list[dict[str, Any]]:
    """All nights as one stream, with the suites measured where each night ends."""
    with Workspace.create(config, say=progress.say) as workspace:
        ends = []
        for log in logs:
            workspace.import_feedback(log)
            ends.append(workspace.store.head())
        out = config.workspace / "online"
        done = workspace.online(out, batch=batch, steps=steps, marks=ends[:-1], progress=progress)
        nights, first, place = [], 0, workspace.registry.head().cursor
        for end, report in zip(ends, [*done.between.values(), done.after], strict=True):
            last = first
            while last < len(done.batches) and place < end:
                place, last = place + done.batches[last].events, last + 1
            batches, first = done.batches[first:last], last
            nights.append(
                {
                    "seconds": sum(b.seconds for b in batches),
                    "update_seconds": statistics.median(b.seconds for b in batches if b.steps),
                    "tokens": sum(b.tokens for b in batches),
                }
                | scores_of(report, config)
            )
        return nights


def scores_of(report: EvaluationReport, config: RunConfig) -> dict[str, float]:
    found = {name: report.suites[name].score for name in config.suites.names}
    return {name: score for name, score in found.items() if score is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("processes"))
    parser.add_argument("--data", type=Path, help="a folder of nights, suites and suites.json instead of the demo's")
    parser.add_argument("--process", nargs="*", default=["increment", "retrain", "online"])
    parser.add_argument("--batch", type=int, default=4, help="online: pieces of feedback in an update")
    parser.add_argument("--steps", type=int, default=8, help="online: steps of a phase in an update, at most")
    parser.add_argument("--quick", action="store_true", help="a random model and a few steps: does it run?")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipes")
    arguments = parser.parse_args()
    data, base = (data_of(arguments.data) if arguments.data else demo_data()), None
    if arguments.quick:
        from resume import small_base

        data = Data(data.logs[:2], data.suites, QUICK) if not arguments.data else data
        base = str(small_base(arguments.out / "base"))
    figures: dict[str, float] = {}
    for process in arguments.process:
        for night, found in enumerate(nights_of(arguments, data, process, base), 1):
            figures |= {f"{process}_night{night}_{name}": value for name, value in found.items()}
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if not arguments.quick:
        rest = f" --data {arguments.data}" if arguments.data else ""
        record(
            f"processes_seed{arguments.seed}", figures, f"python benchmarks/processes.py --seed {arguments.seed}{rest}"
        )
    return 0


def nights_of(arguments: argparse.Namespace, data: Data, process: str, base: str | None) -> list[dict[str, Any]]:
    """What each night of a process came to; kept beside its workspace, so that the same command continues."""
    kept = arguments.out / f"seed{arguments.seed}" / f"{process}.json"
    nights: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    with progress_reporter() as progress:
        if process == "online" and not nights:
            config = config_of(arguments, data, process, 1, base)
            nights = run_online(config, data.logs, arguments.steps, arguments.batch, progress)
            write_json(kept, nights)
        for night in range(len(nights) + 1, len(data.logs) + 1):
            progress.say(f"{process}, night {night} of {len(data.logs)}")
            config = config_of(arguments, data, process, night, base)
            nights.append(run_night(config, data.logs[night - 1], progress))
            write_json(kept, nights)
    return nights


if __name__ == "__main__":
    raise SystemExit(main())
