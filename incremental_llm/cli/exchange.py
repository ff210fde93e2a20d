"""illm registry push, pull: a registry published to a folder or a Hub repository, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from incremental_llm.cli.console import command, next_steps, result, say, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened, read_config

PlaceArgument = Annotated[str, typer.Argument(help="A folder, or a repository of the Hub: hf://owner/name.")]


def push(
    place: PlaceArgument,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do it; without this it is shown what would be sent.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish versions and all that they are made of; only what is not there yet is sent.

    That includes datasets, replay buffers, corrections and reports, which hold what people wrote; a repository of the
    Hub is made private. What is newer there, or has diverged, is never overwritten.
    """
    with opened(config, overrides) as workspace:
        report = workspace.push(place, dry_run=not yes)
    if as_json:
        return result({"sent" if yes else "would_send": report})
    write(f"{report.versions} versions, {report.objects} objects; {report.sent} of them {'sent' if yes else 'to send'}")
    write(f"{report.with_texts} of these hold what people wrote (datasets, replay buffers, corrections, reports)")
    if not yes:
        say("nothing was changed (a plan)")
        return next_steps(command("illm", "registry", "push", place, "--yes"))
    return next_steps(command("illm", "registry", "pull", place))


def pull(
    place: PlaceArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Make the workspace's registry, or bring it to, what is published; all of it is verified first.

    Who was in which event stays where the log is: what is pulled serves, and is not traced or erased from.
    """
    from incremental_llm.registry import Registry
    from incremental_llm.registry.exchange import remote_at

    settings = read_config(config, overrides)
    with Registry.pull(settings.workspace, remote_at(place), url=settings.registry) as registry:
        head = registry.head()
    if as_json:
        return result(head)
    write(f"production is version {head.version}, as published in {place}")
    return next_steps("illm registry verify", "illm evaluate production")
