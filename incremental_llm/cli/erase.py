"""illm feedback erase and illm rebuild: a person leaves the workspace, and the nights that read them are made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import command, next_steps, progress_reporter, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

if TYPE_CHECKING:
    from incremental_llm.erase import ErasurePlan, ErasureReport, RebuildReport

_SHOWN = 20
REFUSED = 20


def erase(
    user: Annotated[str, typer.Option("--user", "-u", help="The user, or the reviewer.", prompt=False)],
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="TEXT",
            help="Other text that marks what is theirs, such as an e-mail address; may be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this the plan is shown.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a user: events, examples, replayed items, caches, and whatever else of the workspace holds them.

    Without --yes it says what would happen and changes nothing. What was interrupted goes on with the same command.
    Afterwards `illm rebuild` makes the versions that were trained on them again.
    """
    with opened(config, overrides) as workspace:
        if not yes:
            return _show_plan(workspace.plan_erasure(user, also or ()), user, also or (), as_json)
        with progress_reporter() as progress:
            report = workspace.erase(user, also or (), progress=progress)
        parts = workspace.registry.erased_parts()
    return _show_report(report, parts, as_json)


def rebuild(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Train again without erased users.

    The versions that were trained on somebody who was erased since are made again: each night by its own recipe and
    gate, the last one against production too, which it takes the place of. Exit code 0: production has not seen the
    user; 20: the gate refused, and production is unchanged. The same command again continues.
    """
    with opened(config, overrides) as workspace, progress_reporter() as progress:
        report = workspace.rebuild(progress)
    _show_rebuild(report, as_json)
    raise typer.Exit(0 if report.version is not None else REFUSED)


def _show_plan(plan: ErasurePlan, user: str, also: Sequence[str], as_json: bool) -> None:
    found: dict[str, Any] = {
        "user": user,
        "pending": plan.pending.id if plan.pending else None,
        "events": len(plan.found.events),
        "examples_in": sorted(plan.seen.had),
        "increments": plan.increments,
        "versions": plan.versions,
        "attempts": sorted(plan.seen.attempts),
        "serving": plan.serving,
        "objects": plan.kinds,
        "files": [{"path": step.path, "what": step.what} for step in plan.files],
        "rows": plan.rows,
        "unsure": plan.unsure,
        "outside": plan.outside,
        "rebuild": plan.rebuild,
        "rebuild_events": plan.rebuild_events,
        "rebuild_seconds": plan.rebuild_seconds,
    }
    if as_json:
        return result(found)
    write(f"{user}: {len(plan.found.events)} events, those of this user and those about their interactions")
    if plan.pending:
        write(f"erasure {plan.pending.id} of {plan.pending.begun:%Y-%m-%d %H:%M} was interrupted: it would go on")
    write(
        f"read by the increments of versions: {_listed(sorted(plan.seen.had))}; trained on: {_listed(plan.increments)}"
    )
    write(f"in the weights of versions: {_listed(plan.versions)}, which could not be restored any more")
    if plan.serving:
        write(f"among them serve until the rebuild: {', '.join(plan.serving)}")
    table(
        "objects that would give way to others without him", [{"kind": k, "objects": n} for k, n in plan.kinds.items()]
    )
    _rows("files and folders that would go or be rewritten", [{"path": s.path, "what": s.what} for s in plan.files])
    table("rows of the feedback database that would change", _counts(plan.rows))
    _unsure(plan.unsure)
    _outside(plan.outside)
    if plan.rebuild:
        hours = f"; these nights took {plan.rebuild_seconds / 3600:.1f} h" if plan.rebuild_seconds else ""
        write(f"to make again: {len(plan.rebuild)} increments of {plan.rebuild_events} events{hours}")
    say("nothing was changed (a plan)")
    return next_steps(
        command("illm", "feedback", "erase", "--user", user, *(f"--also={text}" for text in also), "--yes"),
        command("illm", "feedback", "trace", "user", user),
    )


def _show_report(report: ErasureReport, parts: dict[int, str], as_json: bool) -> None:
    if as_json:
        return result({"report": report, "versions": parts})
    record = report.record
    write(
        f"erasure {record.id}: {record.events} events have left tombstones, {report.objects} objects gave way to others"
    )
    table("rows of the feedback database", _counts(report.rows))
    _rows("versions", [{"version": version, "now": said} for version, said in parts.items()])
    _rows("still naming or quoting this user, perhaps in another's words", [{"path": path} for path in report.left])
    _unsure(report.unsure)
    _outside(report.outside)
    if report.advice:
        write(report.advice)
    if report.rebuild:
        write(f"increments to make again: {_listed(report.rebuild)}")
        return next_steps("illm rebuild", "illm registry verify")
    return next_steps("illm registry verify")


def _show_rebuild(report: RebuildReport, as_json: bool) -> None:
    if as_json:
        return result(report)
    _rows("made again", [{"version": old, "is now": new} for old, new in report.made.items()])
    _rows("left out", [{"version": old, "because": why} for old, why in report.left_out.items()])
    if report.version is None:
        reasons = report.decision.reasons if report.decision else ()
        write("refused: production is unchanged, and still has seen whom was erased")
        for reason in reasons:
            write(f"  because {reason}")
        return next_steps("illm registry list", "illm registry promote VERSION   (it has passed its own night's gate)")
    write(f"production is version {report.version}; {len(report.purged)} adapters that saw whom was erased are gone")
    return next_steps("illm registry verify", "illm evaluate production")


def _counts(rows: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"table": name, "rows": count} for name, count in rows.items()]


def _unsure(places: Sequence[str]) -> None:
    """What holds the name as a word that may mean something else."""
    _rows("perhaps of this user, look at them yourself", [{"what": place} for place in places])


def _outside(sources: Any) -> None:
    _rows("not ours to change, look at them yourself", [{"path": one.path, "what": one.what} for one in sources])


def _rows(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        table(title, rows[:_SHOWN])
        if len(rows) > _SHOWN:
            write(f"and {len(rows) - _SHOWN} more (all of them with --json)")


def _listed(versions: Any) -> str:
    return ", ".join(map(str, versions)) or "none"
