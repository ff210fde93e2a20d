"""illm doctor: is this machine, this recipe and this workspace fit for a run?"""

from __future__ import annotations

import typer

from incremental_llm.cli.console import next_steps, result, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption


def doctor(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check machine, recipe and workspace.

    Also packages, base model, database and suites; changes and downloads nothing. Exit code 0 when nothing failed,
    else 1.
    """
    from incremental_llm.cli.health import examine

    findings = list(examine(config, overrides))
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        result({"healthy": not failed, "findings": findings})
    else:
        table("doctor", [{"what": f.what, "": f.status, "found": f.found, "what to do": f.advice} for f in findings])
        warned = sum(finding.status == "warn" for finding in findings)
        write(f"{len(findings)} checks: {len(failed)} failed, {warned} to look at")
        next_steps("repair what failed, then: illm doctor" if failed else "illm run --dry-run")
    raise typer.Exit(1 if failed else 0)
