"""The standard continual-learning benchmark: tasks one after another, and how much of the old ones is left.

    python benchmarks/continual.py --data FOLDER [--setting cpu] [--methods default,mtl] [--orders 1,2] [--seeds 0]

FOLDER holds <task>.{train,dev,test}.jsonl. Every method is settings of the product (continual.yaml), trained by
`train_increment`, with replay by `ReplayBuffer` and `mix`, and scored by exact match of greedy answers. Besides the
plan's methods there are two bounds: `mtl`, all tasks at once, and `single`, each task alone. MTL is the candidate that
is best on test itself: a bound that others are held against should be the strongest that was found.

Finished runs are kept in RESULTS/continual/SETTING and read from there, whoever ran them; a killed one continues from
OUT. At the end come tables, a heat map a method and RESULTS/continual.json, of all that is finished. The setting `cpu`
is a reduced one: compare its figures among themselves only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from continual_plan import Plan, read_plan
from continual_report import Report, figures, heat_maps, result_of, share, tables
from continual_runs import Bench, NotRun, base_outcomes, mean_share, sequence, single, together
from continual_tasks import read_tasks
from record import RESULTS, record

from incremental_llm.adapters.load import load_tokenizer
from incremental_llm.base_models import resolve
from incremental_llm.errors import ConfigError, IncrementalError

HERE = Path(__file__).resolve().parent
BOUNDS = ("mtl", "single")
CHOSEN = "default"  # the method that is the product's own recipe


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.{train,dev,test}.jsonl")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--plan", type=Path, default=HERE / "continual.yaml")
    parser.add_argument("--setting", help="full with a GPU, else cpu, unless it is named")
    parser.add_argument("--methods", type=_names, help="all, with the bounds, by default")
    parser.add_argument("--orders", type=_names, help="all by default")
    parser.add_argument("--seeds", type=_names, default=["0"])
    parser.add_argument("--out", type=Path, default=Path("continual"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs and figures are kept")
    parser.add_argument("--no-record", action="store_true", help="print only: for a look at part of it")
    arguments = parser.parse_args(given)
    try:
        run(arguments)
    except IncrementalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing is lost, the same command continues", file=sys.stderr)
        return 130
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(arguments: argparse.Namespace) -> None:
    """Run what is not finished yet, then print and keep all of it."""
    plan = read_plan(arguments.plan)
    by_default = "full" if torch.cuda.is_available() else "cpu"
    setting_name = _one_of(arguments.setting or by_default, plan.settings, "setting")
    methods = [_one_of(m, (*BOUNDS, *plan.methods), "method") for m in arguments.methods or (*BOUNDS, *plan.methods)]
    orders = [_one_of(order, plan.orders, "order") for order in arguments.orders or plan.orders]
    setting, seeds = plan.settings[setting_name], [int(seed) for seed in arguments.seeds]
    base = resolve(arguments.base, say=say)
    tokenizer = load_tokenizer(base.folder)
    tasks = read_tasks(arguments.data, plan.tasks, tokenizer, setting.input_tokens)
    kept = arguments.results / plan.name / setting_name
    bench = Bench(base, tokenizer, tasks, setting, kept, arguments.out / setting_name, say)

    run_all(bench, plan, methods, orders, seeds)
    report = finished(replace(bench, runs=False), plan)
    print(f"setting {setting_name}: {setting.model_dump(include={'train_rows', 'test_rows', 'input_tokens'})}\n")
    print(tables(report))
    for path in heat_maps(report, bench.out):
        print(f"wrote {path}")
    if not arguments.no_record:
        sizes = {"train_rows_a_task": setting.train_rows, "test_rows_a_task": setting.test_rows}
        said = f"python benchmarks/continual.py --data FOLDER --setting {setting_name}"
        print(f"wrote {record(plan.name, figures(report, CHOSEN) | sizes, said, folder=arguments.results)}")


def run_all(bench: Bench, plan: Plan, methods: Sequence[str], orders: Sequence[str], seeds: Sequence[int]) -> None:
    """Run what is asked for and not finished, bounds first: a method can then be judged as soon as it is there."""
    base_outcomes(bench)
    for seed in seeds:
        if "mtl" in methods:
            for candidate in range(len(bench.setting.mtl)):
                together(bench, candidate, seed)
        for task in plan.tasks if "single" in methods else ():
            single(bench, task, seed)
        for order in orders:
            for name in (name for name in methods if name not in BOUNDS):
                sequence(bench, name, plan.methods[name], plan.orders[order], order, seed)


def seeds_of(run: Callable[[int], Any]) -> list[Any]:
    """What the kept seeds of a run give, from seed 0 on."""
    found: list[Any] = []
    with contextlib.suppress(NotRun):
        for seed in itertools.count():
            found.append(run(seed))
    return found


def finished(bench: Bench, plan: Plan) -> Report:
    """The report of all runs of the plan that are kept, whatever was asked for now."""
    base = {task: share(right) for task, right in base_outcomes(bench).items()}
    singles = {task: seeds_of(lambda seed, task=task: share(single(bench, task, seed)["right"][task])) for task in base}
    bounds = [seeds_of(lambda seed, n=n: together(bench, n, seed)) for n in range(len(bench.setting.mtl))]
    results = {
        (name, order): seeds_of(
            lambda seed, name=name, order=order, tasks=tasks: result_of(
                tasks, sequence(bench, name, plan.methods[name], tasks, order, seed), base
            )
        )
        for name in plan.methods
        for order, tasks in plan.orders.items()
    }
    return Report(
        {key: found for key, found in results.items() if found},
        base,
        single={task: found for task, found in singles.items() if found},
        mtl=[[mean_share(run["right"]) for run in seeds] for seeds in bounds if seeds],
        mtl_dev=[mean_share(seeds[0]["dev"]) for seeds in bounds if seeds],
    )


def _one_of(name: str, known: Any, what: str) -> str:
    if name not in known:
        raise ConfigError(f"expected a {what} of the plan ({', '.join(known)}), found {name!r}.")
    return name


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    raise SystemExit(main())
