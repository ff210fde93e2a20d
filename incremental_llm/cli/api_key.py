"""illm api-key: who may send feedback over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import command, confirmed, next_steps, result, say, table, write
from incremental_llm.cli.ingest import feedback_store
from incremental_llm.cli.options import ConfigOption, DryRunOption, JsonOption, SetOption, YesOption

if TYPE_CHECKING:
    from incremental_llm.feedback.api.keys import ApiKey

app = typer.Typer(help="Create, list and revoke keys of the ingestion API.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", "-n", help="Whose it is; keys of one name share reply tokens.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", "-s", help="ingest: replies and users' feedback; review: corrections; admin: metrics."),
    ],
    reviewer: Annotated[
        str | None,
        typer.Option("--reviewer", "-r", help="The only one in whose name it may correct; by default anyone."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once: only its digest is kept."""
    from incremental_llm.feedback.api.keys import KeyTable

    with feedback_store(config, overrides) as store:
        keys = KeyTable(store)
        key, secret = keys.create(name, scope, reviewer)
        sharing = [other.id for other in keys.list() if other.name == name and other.id != key.id and not other.revoked]
    if as_json:
        return result({**_record(key), "key": secret})
    say("keep it now; it cannot be shown again:")
    write(secret)
    if sharing:
        say(f"{', '.join(sharing)} of the same name may give feedback on what it logs, and it on theirs")
    return next_steps("illm serve-ingest", f"illm api-key revoke {key.id}")


@app.command("list")
def list_(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show all keys, without their secrets."""
    from incremental_llm.feedback.api.keys import KeyTable

    with feedback_store(config, overrides) as store:
        keys = KeyTable(store).list()
    if as_json:
        return result({"keys": [_record(key) for key in keys]})
    table("API keys", [{**_record(key), "scopes": ", ".join(sorted(key.scopes))} for key in keys])
    return next_steps("illm api-key create --scope ingest --name NAME", "illm api-key revoke ID")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as illm api-key list shows it.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key. A server that runs refuses it within a second."""
    from incremental_llm.feedback.api.keys import KeyTable

    with feedback_store(config, overrides) as store:
        revoked = KeyTable(store).revoke(key)
    if as_json:
        return result(_record(revoked))
    write(f"{revoked.id} of {revoked.name} is revoked since {revoked.revoked:%Y-%m-%d %H:%M:%S} UTC")
    return next_steps(
        "illm api-key list", command("illm", "api-key", "create", "--scope", "ingest", "--name", revoked.name)
    )


@app.command("rotate-tokens")
def rotate_tokens(
    end_old: Annotated[
        bool, typer.Option("--end-old", help="Refuse every reply token made so far; without it they stay valid.")
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign reply tokens with a new secret. With --end-old, feedback on replies logged before is refused."""
    from incremental_llm.feedback.api.keys import KeyTable

    with feedback_store(config, overrides) as store:
        what = "end every reply token made so far" if end_old else "sign reply tokens with a new secret"
        if not confirmed(what, yes=yes or not end_old, dry_run=dry_run, as_json=as_json):
            return None
        number = KeyTable(store).rotate_signing(end_old=end_old)
    if as_json:
        return result({"signing_secret": number, "old_tokens": "refused" if end_old else "valid"})
    write(f"reply tokens are signed with secret {number}; those made before are {'refused' if end_old else 'valid'}")
    return next_steps("illm api-key list")


def _record(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "reviewer": key.reviewer,
        "created": key.created.isoformat(),
        "revoked": key.revoked.isoformat() if key.revoked else None,
    }
