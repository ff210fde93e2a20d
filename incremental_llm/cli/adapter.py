"""illm check-adapter: whether an adapter of somebody else is plain LoRA for this base, and what it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import next_steps, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, read_config

if TYPE_CHECKING:
    from incremental_llm.adapters.foreign import ForeignModule


def check_adapter(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder that somebody else made.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge somebody else's adapter.

    It has to be plain LoRA for the base of the recipe; nothing is written, and nothing of it is run.
    """
    name = read_config(config, overrides).base
    from incremental_llm.adapters.foreign import check_foreign
    from incremental_llm.base_models import resolve

    base = resolve(name, say=say)
    report = check_foreign(folder, base.folder, base_name=base.ref.name).report
    if as_json:
        return result(report)
    write(f"{folder}: plain LoRA for {report.base}, {report.parameters:,} parameters, {len(report.modules)} modules")
    table("modules", _rows(report.modules))
    if report.ignored:
        write(f"allowed and not used: {', '.join(report.ignored)}")
    for warning in report.warnings:
        write(f"warning: {warning}")
    return next_steps(
        f"import_foreign(Path({str(folder)!r}), Path({str(base.folder)!r}), Path('OUT'), base_name={report.base!r})"
        "   (from incremental_llm.adapters.foreign)"
    )


def _rows(modules: Sequence[ForeignModule]) -> list[dict[str, Any]]:
    """Modules that differ in numbers alone, such as those of all layers, are one row."""
    alike: dict[str, list[ForeignModule]] = {}
    for module in modules:
        alike.setdefault(re.sub(r"\.\d+\.", ".*.", module.name), []).append(module)
    return [
        {
            "modules": name,
            "count": len(group),
            "rank": _range([one.rank for one in group]),
            "scaling": _range([one.scaling for one in group]),
            "dtype": ", ".join(sorted({one.dtype for one in group})),
            "norm of the delta, share of the weight's": _range([one.relative_norm for one in group]),
        }
        for name, group in alike.items()
    ]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
