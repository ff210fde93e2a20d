"""Options that commands share, and the two things made of them: a config and an open workspace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.errors import crash_log

if TYPE_CHECKING:
    from incremental_llm.config import RunConfig
    from incremental_llm.workspace import Workspace

RECIPE = Path("incremental.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Recipe; without it {RECIPE} if it is there, else the defaults.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as training.seed=1; may be repeated.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout, and nothing else there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")]


def read_config(config: Path | None, overrides: list[str] | None) -> RunConfig:
    """The recipe that a command uses; raises ConfigError."""
    from incremental_llm.config import load_config

    return load_config(config or (RECIPE if RECIPE.is_file() else None), overrides or ())


@contextlib.contextmanager
def opened(config: Path | None, overrides: list[str] | None) -> Iterator[Workspace]:
    """The workspace of the recipe, closed at the end; a crash inside leaves its traceback there."""
    from incremental_llm.workspace import Workspace

    settings = read_config(config, overrides)
    with crash_log(settings.workspace):
        workspace = Workspace.open(settings)
        try:
            yield workspace
        finally:
            workspace.close()
