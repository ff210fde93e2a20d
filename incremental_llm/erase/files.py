"""Files of a workspace beside its registry: folders of runs, measurements that are kept, patches, traces of crashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import write_json
from incremental_llm.dataset import CompiledDataset
from incremental_llm.erase.redaction import Redaction
from incremental_llm.errors import IncrementalError
from incremental_llm.evaluation import EvaluationReport

_NIGHT, _PRODUCTION = "night.json", "production.json"
_KEPT = (_NIGHT, _PRODUCTION)
_DATASET, _MIXTURE = "dataset", "mixture.json"
_EVIDENCE = (_DATASET, _MIXTURE)


@dataclass(frozen=True)
class FileStep:
    """One thing to do to one file or folder of a workspace, in words, and doing it."""

    path: Path
    what: str
    do: Callable[[], None]


def file_steps(workspace: Path, redaction: Redaction, known_stacks: Collection[str]) -> Iterator[FileStep]:
    """All that is to be done; a step that was done is not there the next time.

    `known_stacks` are digests of the stacks of versions and attempts: what was measured on any other can only be of a
    run that was killed.
    """
    for run in sorted((workspace / "runs").glob("*")):
        yield from _run_steps(run, redaction)
    for folder in sorted((workspace / "evaluations").glob("*")):
        yield from _evaluation_steps(folder, redaction, {stack[:16] for stack in known_stacks})
    for patch in sorted((workspace / "patches").glob("*")):
        # A patch is held to prompts out of the log and does not say which.
        yield FileStep(patch, "a patch, which was held to prompts of the log", _remover(patch))
    for crash in sorted(workspace.glob("illm-crash-*.txt")):
        yield FileStep(crash, "a crash's traceback, which may quote anybody", _remover(crash))
    for left in sorted(workspace.rglob(".*.tmp")):
        yield FileStep(left, "what a killed process was writing", _remover(left))


def _run_steps(run: Path, redaction: Redaction) -> Iterator[FileStep]:
    touched = _touched(run, redaction)
    # An earlier erasure leaves the night alone, and nothing that says whom it read.
    night = _night_change(redaction, touched or not (run / _DATASET).is_dir())
    for name, change in ((_NIGHT, night), (_PRODUCTION, _report_change(redaction))):
        if (run / name).is_file():
            entry = json.loads((run / name).read_text(encoding="utf-8"))
            if (left := change(entry)) != entry:
                yield FileStep(run / name, "a night as the report shows it", _writer(run / name, left))
    if not touched:
        return
    # What says that the run read him goes last: after a kill it still has to be there for what is left.
    for path in sorted(run.iterdir(), key=lambda path: (path.name in _EVIDENCE, path.name)):
        if path.name not in _KEPT:
            yield FileStep(path, "the work of a run that read him", _remover(path))


def _night_change(redaction: Redaction, read_him: bool) -> Callable[[Any], Any]:
    return lambda entry: redaction.night(entry, read_him)


def _report_change(redaction: Redaction) -> Callable[[Any], Any]:
    return lambda value: redaction.report(EvaluationReport.model_validate(value)).model_dump(mode="json")


def _touched(run: Path, redaction: Redaction) -> bool:
    """Whether a run read one of his events, as new feedback or by replay; one that cannot be read counts as touched."""
    if not run.is_dir():
        return False
    try:
        if (run / _DATASET).is_dir() and redaction.stands_on(CompiledDataset.read(run / _DATASET).account):
            return True
        mixture = run / _MIXTURE
        rows = json.loads(mixture.read_text(encoding="utf-8"))["rows"] if mixture.is_file() else ()
        return any(redaction.stands_on(row["example"]["sources"]) for row in rows)
    except (IncrementalError, ValueError, KeyError, TypeError):
        return True


def _evaluation_steps(folder: Path, redaction: Redaction, known: Collection[str]) -> Iterator[FileStep]:
    """What is gone is measured again when it is needed."""
    if folder.name in {stack[:16] for stack in redaction.tainted} or folder.name not in known:
        yield FileStep(folder, "measurements of a stack that was trained on him", _remover(folder))
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.startswith("replayed-"):
            yield FileStep(path, "answers to replayed prompts", _remover(path))
        elif path.suffix == ".json" and _asks_him(path, redaction):
            yield FileStep(path, "answers to his corrections", _remover(path))


def _asks_him(report: Path, redaction: Redaction) -> bool:
    try:
        found = EvaluationReport.from_json(report.read_text(encoding="utf-8"))
    except (IncrementalError, ValueError):
        return True
    return any(redaction.stands_on(item.id for item in suite.items) for suite in found.suites.values())


def _remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    return remove


def _writer(path: Path, value: Any) -> Callable[[], None]:
    return lambda: write_json(path, value)
