"""The standard continual-learning benchmark: tasks one after another, and how much of the old ones is left.

    python benchmarks/continual.py --data FOLDER [--setting cpu] [--methods default,mtl] [--orders 1,2] [--seeds 0]

FOLDER holds <task>.{train,dev,test}.jsonl. Every method is settings of the product (continual.yaml), trained by
`train_increment`, with replay by `ReplayBuffer` and `mix`, and scored by exact match of greedy answers. Besides the
plan's methods there are two bounds: `mtl`, all tasks at once, tuned on dev, and `single`, each task alone.

Everything is kept below OUT/SETUP: finished runs are read, a killed one continues. At the end come tables, a heat map a
method, and results/continual.json. The setting `cpu` is a reduced one: compare its figures among themselves only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, record

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
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are written")
    parser.add_argument("--no-record", action="store_true", help="print only: for a look at part of it")
    arguments = parser.parse_args(given)
    from incremental_llm.errors import IncrementalError

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
    import torch
    from continual_plan import read_plan
    from continual_report import figures, heat_maps, tables
    from continual_runs import Bench
    from continual_tasks import read_tasks

    from incremental_llm.adapters.load import load_tokenizer
    from incremental_llm.base_models import resolve

    plan = read_plan(arguments.plan)
    by_default = "full" if torch.cuda.is_available() else "cpu"
    setting_name = _one_of(arguments.setting or by_default, plan.settings, "setting")
    methods = [_one_of(m, (*BOUNDS, *plan.methods), "method") for m in arguments.methods or (*BOUNDS, *plan.methods)]
    orders = [_one_of(order, plan.orders, "order") for order in arguments.orders or plan.orders]
    setting, seeds = plan.settings[setting_name], [int(seed) for seed in arguments.seeds]
    base = resolve(arguments.base, say=say)
    tokenizer = load_tokenizer(base.folder)
    tasks = read_tasks(arguments.data, plan.tasks, tokenizer, setting.input_tokens)
    bench = Bench(base, tokenizer, tasks, setting, arguments.out / setting_name, say)

    report = run_all(bench, plan, methods, orders, seeds)
    print(f"setting {setting_name}: {setting.model_dump(include={'train_rows', 'test_rows', 'input_tokens'})}\n")
    print(tables(report))
    for path in heat_maps(report, bench.out):
        print(f"wrote {path}")
    if not arguments.no_record:
        sizes = {"train_rows_a_task": setting.train_rows, "test_rows_a_task": setting.test_rows}
        said = command(arguments, setting_name)
        print(f"wrote {record(plan.name, figures(report, CHOSEN) | sizes, said, folder=arguments.results)}")


def run_all(bench: Any, plan: Any, methods: Sequence[str], orders: Sequence[str], seeds: Sequence[int]) -> Any:
    """The report of all runs, bounds first: with them, what a method reaches can be judged as soon as it is there."""
    from continual_report import Report, result_of, share
    from continual_runs import base_outcomes, mean_share, sequence, single, together

    base = {task: share(right) for task, right in base_outcomes(bench).items()}
    bounds: dict[str, Any] = {}
    if "mtl" in methods:
        tried = [mean_share(together(bench, n, seeds[0])["dev"]) for n in range(len(bench.setting.mtl))]
        best = max(range(len(tried)), key=tried.__getitem__)
        reached = [mean_share(together(bench, best, seed)["right"]) for seed in seeds]
        bounds |= {"mtl": reached, "mtl_dev": tried, "mtl_best": best}
    if "single" in methods:
        bounds["single"] = {task: [share(single(bench, task, seed)["right"][task]) for seed in seeds] for task in base}
    results: dict[tuple[str, str], list[Any]] = {}
    for seed in seeds:
        for order in orders:
            for name in (name for name in methods if name not in BOUNDS):
                tasks = plan.orders[order]
                done = sequence(bench, name, plan.methods[name], tasks, order, seed)
                results.setdefault((name, order), []).append(result_of(tasks, done, base))
    return Report(results, base, **bounds)


def command(arguments: argparse.Namespace, setting: str) -> str:
    """What measures the same again; the data's and the output's places are the reader's own."""
    said = f"python benchmarks/continual.py --data FOLDER --setting {setting} --seeds {','.join(arguments.seeds)}"
    for key in ("methods", "orders"):
        if getattr(arguments, key):
            said += f" --{key} {','.join(getattr(arguments, key))}"
    return said


def _one_of(name: str, known: Any, what: str) -> str:
    from incremental_llm.errors import ConfigError

    if name not in known:
        raise ConfigError(f"expected a {what} of the plan ({', '.join(known)}), found {name!r}.")
    return name


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    raise SystemExit(main())
