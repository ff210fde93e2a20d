"""One nightly increment on one or several processes, on CPUs or GPUs of one machine.

    accelerate launch --config_file accelerate_config.yaml --num_processes 2 \\
        recipes/nightly.py --config recipes/nightly_smollm2_cpu.yaml --set training.seed=1

The first process does what `illm nightly` does and the others train with it. The launcher returns 0 for a promotion and
1 for everything else; the exact code (10: nothing to train, 20: rejected, ...) is in the table that it prints.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from incremental_llm.cli.console import progress_reporter
from incremental_llm.config import load_config
from incremental_llm.nightly import run_nightly
from incremental_llm.training.distributed import end_process, run_together


def main() -> int:
    parser = argparse.ArgumentParser(description="One nightly increment, under accelerate launch.")
    parser.add_argument("--config", type=Path, required=True, help="recipe, such as recipes/nightly_smollm2_cpu.yaml")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    options = parser.parse_args()

    def lead(train: Any) -> int:
        config = load_config(options.config, options.overrides)
        with progress_reporter() as progress:
            code, summary = run_nightly(config, progress.say, progress, train)
        print(summary, flush=True)
        return code

    return run_together(lead)


if __name__ == "__main__":
    end_process(main())
