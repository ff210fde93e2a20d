"""Checkpoints that count only when they are complete, and phases that are done once.

The Trainer writes a checkpoint in place, file by file, and takes the highest number as the last one even if it is
empty. Here a manifest with the sha256 of every file is written last; a folder without one, or one that differs from it,
is no checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from incremental_llm.artifacts import MANIFEST, is_complete, verify_folder, write_manifest
from incremental_llm.errors import IntegrityError

log = logging.getLogger(__name__)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole; damaged ones are passed over with a warning."""
    numbered = [(int(p.name.removeprefix("checkpoint-")), p) for p in folder.glob("checkpoint-*") if p.is_dir()]
    for _step, path in sorted(numbered, reverse=True):
        if not is_complete(path):
            log.warning("%s was not written to the end: resuming from an earlier checkpoint", path.name)
            continue
        try:
            verify_folder(path)
        except IntegrityError as error:
            log.warning("%s: resuming from an earlier checkpoint", error)
            continue
        return path
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished phase's checkpoints, on the first process: optimizer states are most of what a run leaves."""
    if PartialState().is_main_process:
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Write the manifest of a checkpoint when every process has finished writing its part of it."""

    def on_save(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        processes = PartialState()
        processes.wait_for_everyone()  # each writes the state of its own random numbers
        if state.is_world_process_zero and folder.is_dir():
            (folder / MANIFEST).unlink(missing_ok=True)
            write_manifest(folder)
        processes.wait_for_everyone()
