"""What every export says of itself: export.json, lineage.json and a README.md, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from incremental_llm.artifacts import write_json
from incremental_llm.handoff.check import UNBOUNDED, LogitCheck, Tolerance
from incremental_llm.handoff.source import Form, Source

EXPORT_FILE = "export.json"
LINEAGE_FILE = "lineage.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class ExportReport:
    """An export that was written and checked.

    `stack_rank` is the largest rank of the concatenated stack, `rank` that of the exported adapter, `error` its
    relative Frobenius error (0 is exact); all None for a whole model. `commands` load or serve it, the usual one first.
    """

    folder: Path
    kind: Form
    dtype: str
    stack_rank: int | None
    rank: int | None
    error: float | None
    check: LogitCheck
    tolerance: Tolerance
    commands: tuple[str, ...]


def describe(folder: Path, source: Source, report: ExportReport, facts: Mapping[str, Any], card: str) -> None:
    """Write into `folder` what was exported and measured, where it comes from, and the card."""
    stack, tolerance = source.stack, report.tolerance
    measured = {
        **asdict(report.check),
        "dtype": stack.dtype,
        "tolerance": None if tolerance == UNBOUNDED else asdict(tolerance),
    }
    base = {**stack.base.model_dump(mode="json"), "revision": source.revision}
    told = {"kind": report.kind, "dtype": report.dtype, **facts, "stack": stack.digest, "base": base}
    write_json(folder / EXPORT_FILE, {**told, "check": measured})
    origin = {"stack": {"digest": stack.digest, **stack.model_dump(mode="json")}, "source": dict(source.lineage)}
    write_json(folder / LINEAGE_FILE, origin)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
