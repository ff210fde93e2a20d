"""What the demo is compared with: one adapter, fine-tuned night after night on the same corrections.

No replay, no anchor, no gate, no stack; the same base, rank, learning rate, epochs and batch size. Nothing rejects the
fourth night.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_baseline(config: Any, logs: Sequence[Path], suites: Mapping[str, int], progress: Any) -> None:
    """Train and measure the comparison, and keep its reports as baseline/reports.json in the workspace."""
    from incremental_llm.artifacts import write_json
    from incremental_llm.base_models import resolve
    from incremental_llm.dataset import CompiledDataset
    from incremental_llm.evaluation import load_suites
    from incremental_llm.evaluation.measure import Measurement
    from incremental_llm.registry import Registry
    from incremental_llm.training.increment import train_increment

    folder = config.workspace / "baseline"
    if (folder / "reports.json").is_file():
        return
    base = resolve(config.base, say=progress.say)
    with Registry.open(config.workspace) as registry:
        served = registry.head().stack.dtype
    loaded = load_suites(config.suites.folder, list(suites))
    datasets = [CompiledDataset.read(path) for path in night_datasets(config.workspace, len(logs))]
    settings = sequential(config.training.at_dtype(served))
    adapters: list[Path] = []
    for night, dataset in enumerate(datasets, 1):
        trained = train_increment(
            base_folder=base.folder,
            adapter_folders=adapters[-1:],
            examples=dataset.sft,
            anchors=(),
            settings=settings,
            out=folder / f"night{night}",
            progress=lambda what, *rest, night=night: progress(f"baseline, night {night}: {what}", *rest),
        )
        adapters.append(trained.adapter)
    with Registry.open(config.workspace) as registry:
        measured = Measurement(config.workspace / "evaluations", base.folder, registry.objects, progress)
        reports = {}
        stack = registry.head().stack.model_copy(update={"adapters": ()})
        reports["base"] = measured.report(stack, loaded, "the base").model_dump(mode="json")
        for night, adapter in enumerate(adapters, 1):
            one = stack.plus(registry.put_object(adapter))
            reports[f"v{night}"] = measured.report(one, loaded, f"the baseline after night {night}").model_dump(
                mode="json"
            )
    write_json(folder / "reports.json", reports)


def sequential(settings: Any) -> Any:
    """The recipe as plain sequential fine-tuning: one adapter goes on by SFT alone, held to nothing."""
    return settings.model_copy(
        update={
            "growth": "continue",
            "anchor": settings.anchor.model_copy(update={"weight": 0.0}),
            "lora": settings.lora.model_copy(update={"null_space": None}),
            "phases": tuple(phase for phase in settings.phases if phase.objective == "sft"),
        }
    )


def night_datasets(workspace: Path, nights: int) -> list[Path]:
    """The compiled datasets of the runs, in the order they were decided."""
    decided = sorted(
        (json.loads(path.read_text(encoding="utf-8"))["time"], path.parent / "dataset")
        for path in (workspace / "runs").glob("*/night.json")
    )
    return [path for _time, path in decided[:nights]]
