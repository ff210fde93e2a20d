"""The demo: three good nights and a bad one, through the product's own front door.

    python recipes/demo/run_nights.py [--seed 0] [--baseline] [--out demo]

Each night imports its log and runs one increment with recipes/nightly_smollm2_cpu.yaml; the gate decides. Everything is
kept below OUT/seedN, so the same command continues where it was stopped. It ends with the table, OUT/results.json,
OUT/report.html and what of its promises it kept; the exit code is 20 where one is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incremental_llm.cli.progress import BarProgress, PlainProgress
    from incremental_llm.config import RunConfig

HERE = Path(__file__).resolve().parent
NIGHTS = 4
BROKEN = 20  # exit code: everything ran, and did not show what it has to
SUITES: dict[str, int] = {  # suite -> the night that teaches it; 0 is there from the start
    "general": 0,
    "shop_night1": 1,
    "shop_before_change": 1,
    "shop_night2": 2,
    "shop_night3": 3,
    "shop_changed": 3,
}
POLICY_REVIEWERS = ["r1"]  # the shop's lead reviewer: who may end a truth
SUPERSEDED = ("shop_before_change",)  # by the policy change of night 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "nightly_smollm2_cpu.yaml")
    parser.add_argument("--baseline", action="store_true", help="also plain sequential fine-tuning, for comparison")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    arguments = parser.parse_args()
    from incremental_llm.cli.console import progress_reporter
    from incremental_llm.errors import IncrementalError

    try:
        with progress_reporter() as progress, remembered_peak(arguments.out / f"seed{arguments.seed}"):
            run_nights(arguments, progress)
            if arguments.baseline:
                from baseline import run_baseline

                run_baseline(config_of(arguments, NIGHTS), logs(), SUITES, progress)
        kept = finish(arguments)
    except IncrementalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing is lost, the same command continues", file=sys.stderr)
        return 130
    return 0 if kept else BROKEN


def logs() -> list[Path]:
    """The four nights' feedback."""
    return [HERE / f"night{night}.jsonl" for night in range(1, NIGHTS + 1)]


def config_of(arguments: argparse.Namespace, night: int) -> RunConfig:
    """The recipe, with the roles that the suites have on this night."""
    from incremental_llm.config import load_config

    roles = {
        "new": [name for name, taught in SUITES.items() if taught == night],
        "old": [name for name, taught in SUITES.items() if taught < night],
        "watch": [name for name, taught in SUITES.items() if taught > night],
    }
    return load_config(
        arguments.recipe,
        [
            f"workspace={arguments.out / f'seed{arguments.seed}'}",
            f"training.seed={arguments.seed}",
            f"suites.folder={HERE.parent.parent / 'eval_suites'}",
            f"compile.policy_reviewers={json.dumps(POLICY_REVIEWERS)}",
            "compile.personal_data_in_prompts=drop",  # as when its results were measured, and so the next
            "compile.trust.enabled=false",
            *(f"suites.{role}={json.dumps(names)}" for role, names in roles.items()),
            *arguments.set,
        ],
    )


def run_nights(arguments: argparse.Namespace, progress: PlainProgress | BarProgress) -> None:
    """Run the nights that are not decided yet, in order."""
    from incremental_llm.report.history import read_nights
    from incremental_llm.workspace import Workspace

    for night, log in enumerate(logs(), 1):
        config = config_of(arguments, night)
        check_same(config, night, log)
        with Workspace.create(config, say=progress.say) as workspace:
            if len(read_nights(workspace.registry, config.workspace)) >= night:
                continue
            progress.say(f"night {night} of {NIGHTS}")
            imported = workspace.import_feedback(log)
            refused = f"{len(imported.refused)} line{'s' if len(imported.refused) != 1 else ''} refused"
            progress.say(f"imported {imported.added} events from {log.name}, {refused}")
            outcome = workspace.run(progress)
            progress.say(f"night {night}: {outcome.decision}" + (f" as v{outcome.version}" if outcome.version else ""))
            for reason in outcome.reasons:
                progress.say(f"  {reason}")


def check_same(config: RunConfig, night: int, log: Path) -> None:
    """Refuse to take up a night that was begun with another recipe or log: its figures would be of something else."""
    from incremental_llm.artifacts import file_digest, write_json
    from incremental_llm.errors import InputError

    kept = config.workspace / f"night{night}.json"
    begun = {"recipe": config.recipe, "log": file_digest(log)}
    if not kept.is_file():
        write_json(kept, begun)
        return
    before = json.loads(kept.read_text(encoding="utf-8"))
    if before == json.loads(json.dumps(begun)):
        return
    sections = begun["recipe"].keys() | before["recipe"].keys()
    changed = sorted(key for key in sections if begun["recipe"].get(key) != before["recipe"].get(key))
    raise InputError(
        f"{config.workspace}: night {night} was begun with another {', '.join(changed) or 'log'}. "
        "Give another --out, or remove the folder to start over."
    )


@contextmanager
def remembered_peak(workspace: Path) -> Iterator[None]:
    """Keep the largest resident memory of any process that worked on this demo, in bytes, whatever stopped it."""
    from incremental_llm.artifacts import write_json

    try:
        yield
    finally:
        kept = workspace / "peak.json"
        before = json.loads(kept.read_text(encoding="utf-8"))["bytes"] if kept.is_file() else 0
        unit = 1 if sys.platform == "darwin" else 1024
        if workspace.is_dir():
            write_json(kept, {"bytes": max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)})


def finish(arguments: argparse.Namespace) -> bool:
    """The table, results.json and report.html; whether every promise is kept (promises.py)."""
    from promises import promises
    from rich.console import Console

    from incremental_llm.artifacts import write_json
    from incremental_llm.report import below_the_matrix, matrix_table, plain_table, results_json, write_report
    from incremental_llm.report.history import history
    from incremental_llm.workspace import Workspace

    config = config_of(arguments, NIGHTS)
    baseline = read_baseline(config.workspace)
    with Workspace.open(config) as workspace:
        data = history(
            workspace.registry,
            config.workspace,
            title="Four nights at an outdoor shop's support assistant",
            seed=arguments.seed,
            superseded=workspace.superseded_suites(),
            peak_memory_bytes=json.loads((config.workspace / "peak.json").read_text(encoding="utf-8"))["bytes"],
            sources={
                "every figure on this page": f"make demo SEED={arguments.seed}" + (" BASELINE=1" if baseline else "")
            },
        )
    data = replace(data, **baseline)
    results = results_json(data)
    for row in results["scores"].values():  # a night that was refused made no version: its column is there, and empty
        for night in range(1, max(SUITES.values()) + 1):
            row.setdefault(f"v{night}", None)
    write_json(arguments.out / "results.json", results)
    write_report(data, arguments.out / "report.html")
    if sys.stdout.isatty():
        console = Console()
        console.print(matrix_table(data, console.width))
        print(below_the_matrix(data))
    else:
        print(plain_table(data))
    told = promises(results, SUITES, SUPERSEDED)
    print("What this demo has to show:\n" + "\n".join(promise.line for promise in told))
    print(f"next: open {arguments.out / 'report.html'}; talk to it: illm chat --set workspace={config.workspace}")
    return all(promise.kept for promise in told)


def read_baseline(workspace: Path) -> dict[str, Any]:
    """The comparison run as report fields, if it was made."""
    kept = workspace / "baseline" / "reports.json"
    if not kept.is_file():
        return {}
    from incremental_llm.evaluation import EvaluationReport
    from incremental_llm.report.history import metrics_of, suite_rows

    stored = json.loads(kept.read_text(encoding="utf-8"))
    reports = {version: EvaluationReport.model_validate(report) for version, report in stored.items()}
    taught = ("base", *(f"v{night}" for night in range(1, max(SUITES.values()) + 1)))  # the last night is false
    good = {version: reports[version] for version in taught}
    return {
        "baseline_suites": suite_rows(reports, SUITES, SUPERSEDED),
        "baseline_metrics": metrics_of(good, SUITES, SUPERSEDED),
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    raise SystemExit(main())
