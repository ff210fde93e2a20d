"""Which increment a run folder holds: whoever continues it must bring the same base, stack, data and recipe."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from incremental_llm.artifacts import write_json
from incremental_llm.base_models import content_digests
from incremental_llm.chat import json_digest
from incremental_llm.dataset.examples import Example, Kind
from incremental_llm.errors import IntegrityError
from incremental_llm.training.settings import TrainingSettings


def check_same_run(
    out: Path,
    base_folder: Path,
    stack: list[str],
    examples: Sequence[Example],
    anchors: Any,
    settings: TrainingSettings,
    replayed: Collection[str],
    turns: Mapping[Kind, Sequence[Collection[str]]],
) -> None:
    """Refuse to continue a folder that another increment began; the first process looks, and a new folder is marked.

    Raises:
        IntegrityError: another base, tokenizer or chat template, stack, data or recipe than the run was started with.
    """
    weights, template = content_digests(base_folder)
    identity = {
        "base": weights,
        "tokenizer and template": template,
        "stack": stack,
        "examples": json_digest([example.model_dump(mode="json") for example in examples]),
        "anchors": json_digest([[[m.model_dump() for m in c], a] for c, a in anchors]),
        "number of processes": PartialState().num_processes,  # a checkpoint has the random states of each
        "replayed": json_digest(
            [sorted(replayed), *([{k: [sorted(t) for t in turns[k]] for k in sorted(turns)}] if turns else [])]
        ),
        "settings": settings.model_dump(mode="json", exclude={"micro_batch", "save_steps"}),  # they change no result
    }
    marker = out / "identity.json"
    if not PartialState().is_main_process:
        return
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        changed = sorted(key for key in identity if identity[key] != found.get(key))
        if changed:
            raise IntegrityError(
                f"{out}: holds a run with another {', '.join(changed)}. Remove the folder to start over, or give back "
                "what it was started with to continue it."
            )
        return
    write_json(marker, identity)
