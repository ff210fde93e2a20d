"""Targeted patches of SmolLM2-135M: seconds, the answer's NLL, and what else moves.

    python benchmarks/patch.py [--corrections 6]      # about half a minute of a core each

Corrections of the demo's first night, evenly spread, each patched by itself on the bare base. `tie_share` is the floor
under every count of changed answers: the share of everyday greedy answers (16 tokens) that random noise of 0.4 % on the
weights of the MLPs' output layers changes in the dtype that the stack is served in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import record

from incremental_llm.cli.console import progress_reporter
from incremental_llm.config import load_config
from incremental_llm.errors import TrainingError
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.replay import anchor_prompts
from incremental_llm.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent


def patched(workspace: Workspace, event: str, progress: Any) -> dict[str, float]:
    """One patch's figures, passed or not."""
    started, cpu, out = time.monotonic(), time.process_time(), workspace.config.workspace / "patches" / event
    try:
        workspace.patch(event, out, progress=progress)
        passed = 1.0
    except TrainingError as refused:
        progress.say(str(refused))
        passed = 0.0
    found = {"passed": passed, "seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    if not (out / "patch.json").is_file():
        return found  # not learnt
    told = json.loads((out / "patch.json").read_text(encoding="utf-8"))
    found |= {name: told[name] for name in ("nll_before", "nll_after", "steps")}
    for group in ("neighbours", "unrelated"):
        checked = told[group]
        found[f"{group}_changed"] = checked["changed"] / checked["count"]
        found[f"{group}_moved"] = len(checked["moved"]) / checked["count"]
        found[f"{group}_kl"] = checked["mean_kl"]
    return found


@torch.no_grad()
def tie_share(workspace: Workspace) -> float:
    """Share of everyday answers that rounding-sized noise changes."""
    model, tokenizer = workspace.load()
    prompts = anchor_prompts()[:40]
    before = greedy_answers(model, tokenizer, prompts, max_new_tokens=16)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("down_proj.weight"):
            weight.add_((0.004 * weight.float().std() * torch.randn(weight.shape)).to(weight.dtype))
    after = greedy_answers(model, tokenizer, prompts, max_new_tokens=16)
    return sum(one != other for one, other in zip(before, after, strict=True)) / len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corrections", type=int, default=6)
    options = parser.parse_args()
    recipe = ROOT / "recipes" / "nightly_smollm2_cpu.yaml"
    with tempfile.TemporaryDirectory() as folder, progress_reporter() as progress:
        config = load_config(recipe, [f"workspace={folder}/illm", f"suites.folder={ROOT / 'eval_suites'}"])
        with Workspace.create(config, say=progress.say) as workspace:
            workspace.import_feedback(ROOT / "recipes" / "demo" / "night1.jsonl")
            events = [example.sources[-1] for example in workspace.compile_preview().sft]
            chosen = events[:: max(1, len(events) // options.corrections)][: options.corrections]
            rows = [patched(workspace, event, progress) for event in chosen]
            floor = tie_share(workspace)
    figures: dict[str, float] = {"corrections": len(rows), "tie_share": floor}
    for name in sorted({name for row in rows for name in row}):
        values = [row[name] for row in rows if name in row]
        middle = statistics.median if name.endswith("seconds") else statistics.mean
        figures[f"{name}_{'median' if middle is statistics.median else 'mean'}"] = middle(values)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    record("patch", figures, f"python benchmarks/patch.py --corrections {options.corrections}")


if __name__ == "__main__":
    main()
