"""illm consolidate: several adapters of production as one, judged before it serves."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import command, confirmed, next_steps, progress_reporter, result, table, write
from incremental_llm.cli.options import ConfigOption, DryRunOption, JsonOption, SetOption, YesOption, opened
from incremental_llm.cli.run import show_checks

if TYPE_CHECKING:
    from incremental_llm.consolidate_run import ConsolidationPlan


class Method(StrEnum):
    """How deltas are merged."""

    sum = "sum"
    magnitude = "magnitude"
    ties = "ties"
    dare = "dare"
    dare_ties = "dare_ties"


MethodOption = Annotated[
    Method | None,
    typer.Option(help="sum is what the stack computes; the others thin it out.", show_default=False),
]
RankOption = Annotated[int | None, typer.Option(min=1, help="Largest rank of the one adapter.", show_default=False)]
ErrorOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Smallest rank within this relative error, such as 0.01.", show_default=False),
]
ScalesOption = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Scales of the newest adapter to try, such as 0.5,0.75,1.", show_default=False),
]
LastOption = Annotated[
    int | None, typer.Option(min=2, help="Only so many of the newest adapters; all by default.", show_default=False)
]


def consolidate(
    method: MethodOption = None,
    rank: RankOption = None,
    error: ErrorOption = None,
    scales: ScalesOption = None,
    last: LastOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make production's adapters one.

    The one adapter is a candidate: measured on new and old suites and judged by the gate, which asks that nothing is
    worse. Options stand for keys of the recipe's section `consolidation`. Exit code 0: promoted, 20: refused, and
    production stays on its stack.
    """
    from incremental_llm.nightly import EXIT_CODES, consolidation_summary

    told = {"method": method and method.value, "rank": rank, "error": error, "scales": scales and f"[{scales}]"}
    given = [f"consolidation.{key}={value}" for key, value in told.items() if value is not None]
    with opened(config, [*(overrides or ()), *given]) as workspace:
        plan = workspace.plan_consolidation(last)
        if not as_json:
            _show(plan)
        elif dry_run:
            return result({"plan": plan})
        if dry_run:
            write("nothing was measured or changed (dry run)")
            again = [f"--{key}={str(value).strip('[]')}" for key, value in told.items() if value is not None]
            return next_steps(command("illm", "consolidate", *again, *([f"--last={last}"] if last else [])))
        if not confirmed(
            f"measure this and promote it if the gate passes it ({plan.sentence})", yes=yes, dry_run=False
        ):
            return None
        with progress_reporter() as progress:
            found = workspace.consolidate(last, progress=progress)
    if as_json:
        checks = {"decision": found.decision, "version": found.version, "reasons": found.checks.reasons}
        result({**checks, "plan": found.plan, "scores": found.scores, "checks": found.checks.checks})
    else:
        show_checks(found.checks, consolidation_summary(found))
        if found.version is None:
            next_steps("illm consolidate --dry-run --error 0.01   (less is lost)", "illm registry list")
        else:
            next_steps(f"illm registry diff {plan.version} {found.version}", f"illm export {found.version} FOLDER")
    raise typer.Exit(EXIT_CODES[found.decision])


def _show(plan: ConsolidationPlan) -> None:
    """Sizes, ranks and errors, before anything is measured."""
    sides = (("now", plan.before), ("consolidated", plan.after))
    rows = [
        {"": name, "adapters": cost.adapters, "rank": cost.rank, "MiB": round(cost.bytes / 2**20, 2)}
        for name, cost in sides
    ]
    table(f"production v{plan.version}, adapters of rank {', '.join(map(str, plan.ranks))}", rows)
    name, worst = plan.worst
    write(f"by {plan.method}: relative error {plan.relative_error:.2g}, at most {worst:.2g} ({name})")
