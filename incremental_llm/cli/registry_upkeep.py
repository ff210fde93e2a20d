"""illm registry du, gc, repair: what a registry takes on the disk, what of it can go, and making good what broke."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import command, next_steps, result, say, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

if TYPE_CHECKING:
    from incremental_llm.registry import Collected

GraceOption = Annotated[
    float, typer.Option("--grace", min=0.0, metavar="HOURS", help="Leave what was put in the last HOURS alone.")
]
_SHOWN = 30


def du(
    grace: GraceOption = 24.0, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show what the registry takes on the disk, by kind of object and by version."""
    with opened(config, overrides) as workspace:
        usage = workspace.du(timedelta(hours=grace))
    if as_json:
        return result(usage)
    table("objects", [{"kind": one.kind, "objects": one.objects, "bytes": one.bytes} for one in usage.kinds])
    rows = [
        {"version": one.version, "own bytes": one.own, "shared bytes": one.shared, "missing objects": one.missing}
        for one in usage.versions[-_SHOWN:]
    ]
    table("versions", rows)
    if len(usage.versions) > _SHOWN:
        write(f"and {len(usage.versions) - _SHOWN} earlier ones (all of them with --json)")
    write(f"{usage.objects} bytes of objects, {usage.database} of database; gc would free {usage.garbage}")
    return next_steps(command("illm", "registry", "gc", *_grace(grace)), "illm registry verify")


def gc(
    grace: GraceOption = 24.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this it is shown what would go.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove objects that no version needs, left over by runs that were killed or measured only.

    No version, rejected attempt or erasure loses anything, and nothing that was put within the grace period goes. It
    waits for no run: while one holds the workspace, --yes is refused (exit code 75).
    """
    hours = timedelta(hours=grace)
    with opened(config, overrides) as workspace:
        found = workspace.gc(hours) if yes else workspace.plan_gc(hours)
    if as_json:
        return result({"removed" if yes else "would_remove": found, "bytes": found.bytes})
    _show_collected(found, yes)
    if yes:
        return next_steps("illm registry verify", "illm registry du")
    say("nothing was changed (a plan)")
    return next_steps(command("illm", "registry", "gc", *_grace(grace), "--yes"))


def repair(
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Another copy of the registry, or of its objects.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do it; without this it is shown what would be done.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make good what can be: unfinished folders go, damaged or missing objects come from a copy, by digest.

    Nothing is invented: what no copy has stays as it is, and the exit code is 1.
    """
    with opened(config, overrides) as workspace:
        found = workspace.repair(source) if yes else workspace.plan_repair(source)
    stays = [one for one in found if one.action == "none"]
    if as_json:
        result({"repaired" if yes else "would_repair": found})
    else:
        rows = [
            {"subject": one.subject[:24], "found": one.found, "action": one.action, "note": one.note} for one in found
        ]
        table("repaired" if yes else "to repair", rows)
        if not yes:
            say("nothing was changed (a plan)")
        again = command("illm", "registry", "repair", *(("--from", source) if source else ()), "--yes")
        next_steps(*([] if yes or len(stays) == len(found) else [again]), "illm registry verify")
    if stays:
        say(f"error: expected to make everything good, found {len(stays)} objects that no copy has")
        raise typer.Exit(1)


def _show_collected(found: Collected, done: bool) -> None:
    for title, listed in (("removed" if done else "would go", found.garbage), ("stay, put lately", found.young)):
        rows = [{"object": one.name[:24], "bytes": one.bytes, "because": one.why} for one in listed[:_SHOWN]]
        if rows or title != "stay, put lately":
            table(title, rows)
        if len(listed) > _SHOWN:
            write(f"and {len(listed) - _SHOWN} more (all of them with --json)")
    if found.foreign:
        write(f"not the registry's, left alone: {', '.join(found.foreign[:_SHOWN])}")
    write(f"{found.bytes} bytes {'freed' if done else 'would be freed'}")


def _grace(hours: float) -> tuple[str, ...]:
    return () if hours == 24.0 else ("--grace", f"{hours:g}")
