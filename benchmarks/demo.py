"""Run the demo for a seed, or take up a finished run, and keep its figures.

python benchmarks/demo.py --seed 0 [--baseline] [--out demo]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from record import record

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--baseline", action="store_true", help="also plain sequential fine-tuning, for comparison")
    arguments = parser.parse_args()
    also = ["--baseline"] if arguments.baseline else []
    script = ROOT / "recipes" / "demo" / "run_nights.py"
    told = [sys.executable, script, "--seed", str(arguments.seed), "--out", arguments.out, *also]
    code = subprocess.run(told, check=False).returncode
    if code not in (0, 20):  # 20: it ran, and broke a promise: that is a figure too
        return code
    results = json.loads((arguments.out / "results.json").read_text(encoding="utf-8"))
    command = " ".join(["python benchmarks/demo.py --seed", str(arguments.seed), *also])
    record(f"demo_seed{arguments.seed}", figures(results), command)
    return 0


def figures(results: dict) -> dict[str, float]:
    """Every measured number of results.json under a flat name; what was not measured is left out."""
    flat = _scores(results["scores"])
    if "baseline" in results:
        flat |= {f"baseline_{name}": score for name, score in _scores(results["baseline"]["scores"]).items()}
    flat |= {name: value for name, value in results["metrics"].items() if value is not None}
    if "bwt" in flat:
        flat["bwt"] *= 100  # in points, as the head of RESULTS.md says
    for suite, change in results["against_base"].items():  # of the last version, on the same items
        flat |= {f"{suite}_against_base_{part}": change[part] for part in ("difference", "low", "high")}
    for number, night in enumerate(results["nights"], 1):
        flat[f"night{number}_promoted"] = float(night["decision"] == "promoted")
        flat[f"night{number}_seconds"] = night["seconds"]
        flat[f"night{number}_tokens"] = night["tokens"]
    return flat | {"peak_memory_gib": results["peak_memory_bytes"] / 2**30}


def _scores(scores: dict) -> dict[str, float]:
    return {
        f"{suite}_{version}": cell["score"]
        for suite, cells in scores.items()
        for version, cell in cells.items()
        if cell is not None
    }


if __name__ == "__main__":
    raise SystemExit(main())
