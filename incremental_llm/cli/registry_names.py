"""illm registry tag, untag, alias: names for versions that serve nobody."""

from __future__ import annotations

from typing import Annotated

import typer

from incremental_llm.cli.console import command, next_steps, result, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.cli.registry import RefArgument

NameArgument = Annotated[str, typer.Argument(help="The name, such as before-sale.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept with the name.")]


def tag(
    name: NameArgument,
    version: RefArgument = "production",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name a version for good: a tag never moves, and is taken wherever a version is."""
    with opened(config, overrides) as workspace:
        snapshot = workspace.tag(name, version, reason)
    if as_json:
        return result({"tag": name, "version": snapshot.version})
    write(f"tag {name} names version {snapshot.version}")
    return next_steps(command("illm", "registry", "show", name), "illm registry list")


def untag(
    name: NameArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Take a tag back; the version that it named stays."""
    with opened(config, overrides) as workspace:
        version = workspace.untag(name)
    if as_json:
        return result({"untagged": name, "version": version})
    write(f"{name} names nothing any more; it was version {version}, which stays")
    return next_steps(command("illm", "registry", "tag", name, version), "illm registry list")


def alias(
    name: NameArgument,
    version: RefArgument = "production",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point a name that may move, such as shadow, to a version; production moves by promote only."""
    with opened(config, overrides) as workspace:
        snapshot = workspace.alias(name, version, reason)
    if as_json:
        return result({"alias": name, "version": snapshot.version})
    write(f"{name} is version {snapshot.version} now")
    return next_steps(command("illm", "registry", "show", name), command("illm", "evaluate", name))
