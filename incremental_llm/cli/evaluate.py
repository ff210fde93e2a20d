"""illm evaluate: any version on any suites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import command, next_steps, progress_reporter, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

if TYPE_CHECKING:
    from incremental_llm.evaluation import EvaluationReport, SuiteResult

SuiteOption = Annotated[
    list[str] | None,
    typer.Option("--suite", "-s", help="A suite by name; may be repeated. All of the recipe's without it."),
]
WrongOption = Annotated[bool, typer.Option("--wrong", help="Also list the answers that were wrong or not measured.")]


def evaluate(
    ref: Annotated[str, typer.Argument(help="A ref or a version, such as production or 3.")] = "production",
    suites: SuiteOption = None,
    wrong: WrongOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a version on suites.

    Greedy answers, item by item, and scores with their 95 % intervals. Exit code 1 when an item could not be measured.
    """
    with opened(config, overrides) as workspace, progress_reporter() as progress:
        report = workspace.evaluate(ref, suites, progress)
    if as_json:
        result(report)
    else:
        _show(ref, report, wrong)
    unscored = sum(found.unscored for found in report.suites.values())
    if unscored or not report.suites:
        found = f"{unscored} that were not" if report.suites else "no suite: name some under `suites` in the recipe"
        say(f"error: expected every item to be measured, found {found}.")
        raise typer.Exit(1)


def _show(ref: str, report: EvaluationReport, wrong: bool) -> None:
    rows = [
        {"suite": name, **_figures(found), "items": found.n, "not measured": found.unscored}
        for name, found in report.suites.items()
    ]
    table(f"{ref} on {len(rows)} suites", rows)
    write(f"{report.tokens} tokens generated and scored in {report.seconds:.1f} s")
    if wrong:
        for name, found in report.suites.items():
            missed = [item for item in found.items if not item.correct]
            table(f"{name}: not right", [{"item": i.id, "answer": i.answer, "note": i.note} for i in missed])
    next_steps(command("illm", "chat", ref), command("illm", "evaluate", ref, "--wrong"), "illm registry list")


def _figures(found: SuiteResult) -> dict[str, str]:
    if found.score is None or found.low is None or found.high is None:
        return {"score": "not measured", "95 % interval": "-"}
    return {
        "score": f"{100 * found.score:.1f} %",
        "95 % interval": f"{100 * found.low:.1f} to {100 * found.high:.1f} %",
    }
