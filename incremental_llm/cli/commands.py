"""The tree of commands; each noun is a file beside this one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from incremental_llm.cli import (
    adapter,
    api_key,
    chat,
    cherry_drop,
    consolidate,
    dataset,
    doctor,
    erase,
    evaluate,
    exchange,
    export,
    feedback,
    ingest,
    init,
    patch,
    registry,
    registry_names,
    registry_upkeep,
    report,
    review,
    run,
)
from incremental_llm.cli.errors import ErrorBoundary

_ORDER = (
    *("init", "feedback", "serve-ingest", "api-key", "dataset", "review", "run", "nightly", "patch", "consolidate"),
    *("rebuild", "evaluate", "registry", "check-adapter", "export", "report", "chat", "doctor"),
)


class _Commands(ErrorBoundary):
    """Lists the commands in the order of a first day with the tool."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="illm",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            found = metadata.version("incremental_llm")
        except metadata.PackageNotFoundError:
            found = "run from its source tree, not installed"
        typer.echo(f"incremental_llm {found}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Feedback in, a better chat model out: nightly LoRA increments, gated and versioned."""


app.command("init")(init.init)
app.add_typer(feedback.app, name="feedback")
app.command("serve-ingest")(ingest.serve_ingest)
app.add_typer(api_key.app, name="api-key")
app.add_typer(dataset.app, name="dataset")
app.add_typer(review.app, name="review")
app.command("run")(run.run)
app.command("nightly")(run.nightly)
app.command("patch")(patch.patch)
app.command("consolidate")(consolidate.consolidate)
app.command("rebuild")(erase.rebuild)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(registry.app, name="registry")
app.command("check-adapter")(adapter.check_adapter)
registry.app.command("tag")(registry_names.tag)
registry.app.command("untag")(registry_names.untag)
registry.app.command("alias")(registry_names.alias)
registry.app.command("cherry-drop")(cherry_drop.cherry_drop)
registry.app.command("du")(registry_upkeep.du)
registry.app.command("gc")(registry_upkeep.gc)
registry.app.command("repair")(registry_upkeep.repair)
registry.app.command("push")(exchange.push)
registry.app.command("pull")(exchange.pull)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the console scripts."""
    app()
