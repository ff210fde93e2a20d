"""Learn a workspace's pending feedback at once, batch after batch, and measure what comes of it. Promotes nothing.

    python recipes/online.py --config recipes/nightly_smollm2_cpu.yaml --batch 4 [--steps 8] [--out online]

The same events, recipe and suites as the next `illm run`, to compare with it. It prints the seconds from each batch to
its weights, and ends with a table of the suites; OUT/report.json has both, OUT/adapter is a plain PEFT adapter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incremental_llm.cli.console import progress_reporter, table
from incremental_llm.config import load_config
from incremental_llm.errors import IncrementalError
from incremental_llm.workspace import Workspace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe, such as recipes/nightly_smollm2_cpu.yaml")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="pieces of feedback taken in at once")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps of a phase in an update, at most")
    parser.add_argument("--out", type=Path, default=Path("online"), help="a folder that does not exist")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.overrides)
        with Workspace.open(config) as workspace, progress_reporter() as progress:
            done = workspace.online(options.out, batch=options.batch, steps=options.steps, progress=progress)
    except IncrementalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for number, batch in enumerate(done.batches, 1):
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in batch.losses.items())
        told = f"{batch.steps} steps, {batch.tokens} tokens, {losses}" if batch.steps else batch.note
        print(f"batch {number}: {batch.examples} examples, {batch.seconds:.1f} s; {told}")
    rows = [
        {"suite": name, f"production v{done.version}": _points(found.score), "after": _points(after.score)}
        for (name, found), after in zip(done.production.suites.items(), done.after.suites.values(), strict=True)
    ]
    table("points of 100", rows)
    print(f"{done.seconds:.1f} s from feedback to weights in {len(done.batches)} batches, {done.tokens} tokens trained")
    for note in done.notes:
        print(f"  {note}")
    print(f"nothing was promoted; all results in {options.out}")
    return 0


def _points(score: float | None) -> str:
    return "not measured" if score is None else f"{100 * score:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
