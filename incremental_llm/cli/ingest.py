"""illm serve-ingest: feedback in over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import next_steps, say
from incremental_llm.cli.errors import crash_log
from incremental_llm.cli.options import ConfigOption, SetOption, read_config
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.feedback import FeedbackStore


@contextlib.contextmanager
def feedback_store(config: Path | None, overrides: list[str] | None) -> Iterator[FeedbackStore]:
    """The recipe's feedback database; it may be on a machine that has no registry, where the recipe names it by URL.

    Raises:
        InputError: the recipe names none, and there is no workspace.
    """
    from incremental_llm.feedback import FeedbackStore

    settings = read_config(config, overrides)
    if not settings.database and not settings.registry and not (settings.workspace / "registry.db").is_file():
        raise InputError(
            f"{settings.workspace}: expected a workspace, found none. Make one: illm init; or give the database's URL: "
            "--set database=postgresql+psycopg://..."
        )
    with crash_log(settings.workspace), FeedbackStore(settings.database_url) as store:
        yield store


def serve_ingest(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8712,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen where other machines can connect, without TLS.")
    ] = False,
    key_rate: Annotated[
        float, typer.Option("--key-rate", min=0, help="Events per second of an API key; 0: no limit.")
    ] = 1000,
    user_rate: Annotated[
        float, typer.Option("--user-rate", min=0, help="Events per second of a user; 0: no limit.")
    ] = 2,
    max_body: Annotated[int, typer.Option("--max-body", min=1 << 10, max=1 << 26, help="Largest body, in bytes.")] = 1
    << 20,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Take feedback in over HTTP.

    An application logs replies and sends feedback on them; a 202 means that it is on the disk. Runs beside illm run and
    illm nightly. SIGTERM finishes what was begun.
    """
    from incremental_llm.feedback.api.server import serve
    from incremental_llm.feedback.api.settings import ApiSettings
    from incremental_llm.unsettled import review_queue

    settings = ApiSettings(key_rate=key_rate, user_rate=user_rate, max_body_bytes=max_body)

    def ready(url: str) -> None:
        say(f"listening on {url}, documented at {url}/docs; reviewers work at {url}/review")
        next_steps("illm api-key create --scope ingest --name NAME", "illm feedback status")

    with feedback_store(config, overrides) as store:
        review = review_queue(store, read_config(config, overrides))
        serve(store, settings, host=host, port=port, allow_remote=allow_remote, review=review, ready=ready)
    say("ended; all that was answered with 202 is stored")
