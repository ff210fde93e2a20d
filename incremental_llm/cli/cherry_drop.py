"""illm registry cherry-drop: one increment out of production, the later ones made again without it."""

from __future__ import annotations

from typing import Annotated

import typer

from incremental_llm.cli.console import command, next_steps, progress_reporter, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

REFUSED = 20


def cherry_drop(
    version: Annotated[str, typer.Argument(help="The increment that goes, such as 3.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept with the events.", prompt=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this the plan is shown.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take one increment out of production, and train the later ones again without it.

    Its events are quarantined. Each later increment has its own recipe and gate again, the last one is held against
    production too. Exit code 0: the result serves; 20: the gate refused, and production is unchanged. The same command
    again continues.
    """
    with opened(config, overrides) as workspace:
        plan = workspace.plan_drop(version)
        if not yes:
            if as_json:
                return result({"plan": plan})
            write(f"production {plan.head} without increment {plan.dropped}, from version {plan.start} on")
            write(
                f"to quarantine: {len(plan.seqs)} events, {plan.seqs[0]} to {plan.seqs[-1]}"
                if plan.seqs
                else "no events"
            )
            again = ", ".join(map(str, plan.again)) or "none: it is the newest, so this is a rollback"
            write(f"to train again: {again}")
            say("nothing was changed (a plan)")
            return next_steps(command("illm", "registry", "cherry-drop", version, "--reason", reason, "--yes"))
        with progress_reporter() as progress:
            report = workspace.cherry_drop(version, reason, progress)
    if as_json:
        result(report)
    else:
        rows = [{"version": old, "is now": str(new)} for old, new in report.made.items()]
        rows += [{"version": old, "is now": f"left out: {why}"} for old, why in report.left_out.items()]
        if rows:
            table("made again", rows)
        if report.version is None:
            write("refused: production and its events are unchanged")
            for reason in report.decision.reasons if report.decision else ():
                write(f"  because {reason}")
            next_steps("illm registry list", "illm registry promote VERSION   (it has passed its own night's gate)")
        else:
            write(f"production is version {report.version}, without increment {plan.dropped}")
            next_steps("illm registry verify", "illm evaluate production")
    raise typer.Exit(0 if report.version is not None else REFUSED)
