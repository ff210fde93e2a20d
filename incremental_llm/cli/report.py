"""illm report: everything about the runs so far on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from incremental_llm.cli.console import next_steps, result, say, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError


def report(
    out: Annotated[Path, typer.Argument(help="The HTML file to write.")] = Path("report.html"),
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page about all runs.

    Self-contained: scores, losses, decisions, data and lineage.
    """
    if out.is_dir():
        raise InputError(f"{out}: expected a file to write, found a folder. Write {out / 'report.html'} instead.")
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: expected a folder {out.parent} to write into, found none. Make it, or correct the path."
        )
    with opened(config, overrides) as workspace:
        page = workspace.report(out, say=say)
    if as_json:
        return result({"report": page})
    write(f"{page}: the report ({page.stat().st_size / 1e3:.0f} kB, no other file needed)")
    return next_steps(f"open {page} in a browser", "illm registry list")
