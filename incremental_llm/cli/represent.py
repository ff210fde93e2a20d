"""illm feedback represent and held-out: whom the feedback does not speak for, and the sample that nobody chose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from incremental_llm.cli.console import next_steps, result, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError

_SHOWN = 20


def represent(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Say who and what the feedback does not represent: replies served, judged and used, by group."""
    with opened(config, overrides) as workspace:
        found = workspace.representation()
    if as_json:
        return result(found)
    write(f"{found.served} replies served, {found.judged} judged, {found.used} behind what production was trained on")
    write(f"{found.silent_users} of {found.users} users never judged one")
    write(f"{found.loudest_share:.0%} of all feedback is from the tenth of its givers who give most")
    rows = [
        {
            "group": f"{one.dimension}: {one.value}",
            "served": one.served,
            "judged": one.judged,
            "used": one.used,
            "judged, to elsewhere": f"{one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})",
        }
        for one in found.groups[:_SHOWN]
    ]
    table("least represented first", rows)
    if len(found.groups) > _SHOWN:
        write(f"and {len(found.groups) - _SHOWN} more (all of them with --json)")
    return next_steps("illm feedback held-out OUT.jsonl", "illm dataset show")


def held_out(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="A file that does not exist.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the replies of the held-out conversations, which are never trained on, with what people said of them."""
    if out.exists():
        raise InputError(f"{out} exists: give a file that does not, so that nothing is overwritten.")
    with opened(config, overrides) as workspace:
        replies = workspace.held_out(out)
    judged = [one for one in replies if one.up or one.down or one.corrections]
    up, down = (sum(getattr(one, side) for one in replies) for side in ("up", "down"))
    if as_json:
        return result({"file": out, "replies": len(replies), "judged": len(judged), "up": up, "down": down})
    write(f"{out}: {len(replies)} replies, {len(judged)} judged; {up} users liked one, {down} did not")
    return next_steps("illm feedback represent", "illm evaluate production")
