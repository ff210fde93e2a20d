"""illm run and illm nightly: from new feedback to a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from incremental_llm.cli.console import next_steps, progress_reporter, result, say, table, write
from incremental_llm.cli.errors import crash_log
from incremental_llm.cli.options import ConfigOption, DryRunOption, JsonOption, SetOption, opened, read_config

if TYPE_CHECKING:
    from incremental_llm.evaluation import EvaluationReport
    from incremental_llm.gate import Decision
    from incremental_llm.pipeline import RunOutcome


def run(
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, measure, and promote or reject.

    One increment on the new feedback, measured on all suites; the gate decides. With --set process=retrain it is one
    adapter from the base on all feedback instead. The same command again continues a run that was interrupted. Exit
    code 0: promoted, 10: nothing to train, 20: rejected, 30: rejected and quarantined, 75: another run holds the
    workspace.
    """
    from incremental_llm.nightly import EXIT_CODES, LOADING, summary

    with opened(config, overrides) as workspace:
        if dry_run:
            return _show_plan(workspace.plan().lines, as_json)
        with progress_reporter() as progress:
            progress(LOADING, 0, 0)
            outcome = workspace.run(progress)
    if as_json:
        result(_record(outcome))
    else:
        show_checks(outcome.checks, summary(outcome))
        next_steps(*_after(outcome))
    raise typer.Exit(EXIT_CODES[outcome.decision])


def nightly(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Run once for a scheduler.

    One run at a time, a summary, and an exit code. 0: promoted, 10: nothing to train, 20: rejected, 30: rejected and
    quarantined, 75: another run holds the workspace.
    """
    from incremental_llm.nightly import run_nightly

    settings = read_config(config, overrides)
    with crash_log(settings.workspace), progress_reporter() as progress:
        code, summary = run_nightly(settings, say=progress.say, progress=progress)
    if as_json:
        result({"exit_code": code, "summary": summary.splitlines()})
    else:
        write(summary)
        next_steps(*_NIGHTLY_STEPS.get(code, ("illm registry list",)))
    raise typer.Exit(code)


_NIGHTLY_STEPS = {
    0: ("illm report", "illm chat"),
    10: ("illm feedback import FILE.jsonl", "illm feedback status"),
    75: ("illm nightly   (later; it is safe to repeat)",),
}


def _show_plan(lines: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        return result({"plan": lines})
    for line in lines:
        write(line)
    say("nothing was changed (dry run)")
    return next_steps("illm run", "illm dataset show")


def _after(outcome: RunOutcome) -> tuple[str, ...]:
    if outcome.decision == "promoted":
        return ("illm report", "illm chat", f"illm export {outcome.version} FOLDER --form peft")
    return ("illm report", "illm registry list", "illm feedback import FILE.jsonl   (a retry needs new feedback)")


def show_checks(decision: Decision, verdict: tuple[str, ...]) -> None:
    """The gate's table, the items that were lost, and the verdict."""
    from incremental_llm.gate.decision import COLUMNS

    rows = [dict(zip(COLUMNS, row, strict=True)) for row in decision.table()]
    table("what the gate looked at (points of 100)", rows)
    write()
    for check in decision.checks:
        if check.lost:
            more = f" and {check.lost_total - len(check.lost)} more" if check.lost_total > len(check.lost) else ""
            write(f"right before and wrong now in {check.name}: {', '.join(check.lost)}{more}")
    for line in verdict:
        write(line)


def _record(outcome: RunOutcome) -> dict[str, Any]:
    """The outcome for machines; everything else is in its folder."""
    return {
        "decision": outcome.decision,
        "version": outcome.version,
        "attempt": outcome.attempt,
        "reasons": outcome.reasons,
        "checks": outcome.checks.checks,
        "scores": {"production": _scores(outcome.production), "candidate": _scores(outcome.candidate)},
        "data": outcome.dataset.counts,
        "replay": outcome.replay,
        "notes": outcome.notes,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "stage_seconds": outcome.stage_seconds,
        "folder": outcome.folder,
    }


def _scores(report: EvaluationReport) -> dict[str, Any]:
    return {
        name: {"score": found.score, "low": found.low, "high": found.high, "n": found.n, "unscored": found.unscored}
        for name, found in report.suites.items()
    }
