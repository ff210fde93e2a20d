"""illm registry: versions, refs, and moving them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from incremental_llm.cli.console import command, confirmed, next_steps, plain, result, say, table, write
from incremental_llm.cli.options import ConfigOption, DryRunOption, JsonOption, SetOption, YesOption, opened
from incremental_llm.errors import InputError

app = typer.Typer(help="Look at versions, verify or move them.", no_args_is_help=True)

RefArgument = Annotated[str, typer.Argument(help="A ref or a version, such as production or 3.")]


@app.command("list")
def list_(
    last: Annotated[int, typer.Option("--last", min=1, help="How many of the newest versions to show.")] = 50,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, the refs and tags on them, and the rejected attempts, which have no version; all with --json."""
    with opened(config, overrides) as workspace:
        registry = workspace.registry
        snapshots, every = registry.summaries(last), registry.list() if as_json else ()
        attempts = registry.attempts()
        refs, tags = registry.refs(), registry.tags()
        quarantined = len(registry.quarantined())
    if as_json:
        found = {
            "versions": every,
            "refs": refs,
            "tags": tags,
            "attempts": attempts,
            "quarantined_events": quarantined,
        }
        return result(found)
    rows = [
        {
            "version": snapshot.version,
            "refs": ", ".join(name for name, version in (*refs.items(), *tags.items()) if version == snapshot.version),
            "kind": snapshot.kind,
            "parent": snapshot.parent,
            "time": f"{snapshot.time:%Y-%m-%d %H:%M}",
            "adapters": snapshot.adapters,
            "events read": snapshot.cursor,
            "note": snapshot.note,
        }
        for snapshot in snapshots
    ]
    table("versions", rows)
    if snapshots[0].version:
        write(f"and {snapshots[0].version} earlier ones (--last N shows more)")
    tried = [
        {
            "attempt": attempt.id[:12],
            "on version": attempt.parent,
            "time": f"{attempt.time:%Y-%m-%d %H:%M}",
            "events": len(attempt.seqs),
            "rejected because": attempt.reason,
        }
        for attempt in attempts
    ]
    table("rejected attempts", tried)
    write(f"quarantined events: {quarantined}" + (" (illm registry quarantine)" if quarantined else ""))
    return next_steps("illm registry show production", "illm registry diff 0 production", "illm registry verify")


@app.command()
def show(
    ref: RefArgument = "production",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: what it is made of, and the tree of versions around it."""
    from incremental_llm.registry.ancestry import draw

    with opened(config, overrides) as workspace:
        snapshot, nodes = workspace.registry.get(ref), workspace.registry.ancestry()
    if as_json:
        return result({**plain(snapshot), "lineage": nodes})
    _write_tree(plain(snapshot))
    write("lineage:")
    for line in draw(nodes, snapshot.version, last=20):
        write(f"  {line}")
    steps = [command("illm", "evaluate", ref), command("illm", "chat", ref)]
    if snapshot.stack.adapters:
        steps.append(command("illm", "export", ref, "FOLDER", "--form", "peft"))
    return next_steps(*steps)


@app.command()
def quarantine(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show the events that no increment may use again, and what decided it."""
    with opened(config, overrides) as workspace:
        spent = workspace.registry.quarantine()
    if as_json:
        return result({"quarantined": spent})
    decided: dict[tuple[Any, ...], list[int]] = {}
    for event in spent:
        by = f"attempt {event.attempt[:12]}" if event.attempt else f"version {event.version}, a rollback"
        decided.setdefault((f"{event.time:%Y-%m-%d %H:%M}", by, event.reason), []).append(event.seq)
    rows = [
        {"time": time, "decided by": by, "events": len(seqs), "places": f"{min(seqs)} to {max(seqs)}", "because": why}
        for (time, by, why), seqs in decided.items()
    ]
    table("quarantined events", rows)
    write(f"{len(spent)} events; feedback that was right after all comes back as new events, with new ids")
    return next_steps("illm registry list", "illm feedback import FILE.jsonl")


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="The version that production moves to, such as 3.")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move production to a version that has passed the gate. To undo an increment, use rollback instead."""
    with opened(config, overrides) as workspace:
        target, now = workspace.registry.get(version), workspace.registry.head("production")
        if target.version == now.version:
            raise InputError(f"expected another version than {now.version}, which production is already.")
        move = f"move production from version {now.version} to {target.version}"
        if not confirmed(move, yes=yes, dry_run=dry_run, as_json=as_json):
            return _stayed(now.version, target.version, as_json)
        snapshot = workspace.promote(target.version, expected=now.version)
    return _moved(snapshot, now.version, as_json)


@app.command()
def rollback(
    to: Annotated[str, typer.Argument(help="The version to go back to, such as 3.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept with the version.", prompt=False)],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to an earlier version, as a new one, and quarantine the events of what is undone."""
    with opened(config, overrides) as workspace:
        target, now = workspace.registry.get(to), workspace.registry.head("production")
        undone = f"roll production back from version {now.version} to the state of {target.version}"
        events = f", and quarantine events {target.cursor + 1} to {now.cursor}" if now.cursor > target.cursor else ""
        if not confirmed(undone + events, yes=yes, dry_run=dry_run, as_json=as_json):
            return _stayed(now.version, target.version, as_json)
        snapshot = workspace.rollback(target.version, reason, expected=now.version)
    return _moved(snapshot, now.version, as_json)


@app.command()
def verify(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Read everything back: objects against their digests, the chain of versions, refs and decisions."""
    with opened(config, overrides) as workspace:
        problems = workspace.registry.verify()
        versions = len(workspace.registry.list()) if not problems else None
        erased = workspace.registry.erased_parts() if not problems else {}
    if as_json:
        result({"problems": problems, "erased": erased})
    elif problems:
        for problem in problems:
            write(f"problem: {problem}")
        next_steps(*_after_problems(problems))
    else:
        for version, said in erased.items():
            write(f"version {version}: {said}")
        write(f"all is well: {versions} version(s), every object as its digest says")
        next_steps("illm registry list")
    if problems:
        say(f"error: expected every promise of the registry to hold, found {len(problems)} broken")
        raise typer.Exit(1)


@app.command()
def diff(
    before: RefArgument,
    after: RefArgument = "production",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what lies between two versions: stack, recipe, data, weights by layer, scores, and what is not there."""
    with opened(config, overrides) as workspace:
        found = workspace.diff(before, after)
    if as_json:
        return result(found)
    rows = {
        "recipe": [{"key": one.key, "before": one.before, "after": one.after} for one in found.settings],
        "data": [{"what": one.what, "before": one.before, "after": one.after} for one in found.counts],
        "weights added, Frobenius norm": [plain(one) for one in found.layers],
        "scores": [{"suite": one.suite, "before": one.before, "after": one.after} for one in found.scores],
    }
    shown = plain(found)
    _write_tree({key: shown[key] for key in ("before", "after", "added", "removed", "events", "changed")})
    for title, listed in rows.items():
        if listed:
            table(title, listed)
    for line in found.absent:
        write(f"not compared: {line}")
    return next_steps(command("illm", "evaluate", before), command("illm", "evaluate", after))


def _after_problems(problems: Sequence[object]) -> tuple[str, ...]:
    """An erasure that was interrupted has damaged nothing: a copy would bring back whom it erased."""
    damaged = [problem for problem in problems if not str(problem).startswith("erasure ")]
    copy = "restore what is damaged from a copy, then: illm registry verify"
    again = "illm feedback erase --user NAME --yes   (it goes on), then: illm registry verify"
    return (copy,) if len(damaged) == len(problems) else (copy, again) if damaged else (again,)


def _moved(snapshot: Any, before: int, as_json: bool) -> None:
    if as_json:
        return result(snapshot)
    write(f"production is now version {snapshot.version} (was {before})")
    return next_steps("illm registry list", "illm evaluate production")


def _stayed(now: int, target: int, as_json: bool) -> None:
    """What to look at before a move that was shown or declined."""
    if not as_json:
        next_steps(f"illm registry diff {now} {target}", "the same command with --yes, to go through with it")


def _write_tree(value: Any, depth: int = 0) -> None:
    """Plain nested data, a key a line; what is None is left out."""
    pad = "  " * depth
    for key, item in value.items():
        if isinstance(item, dict) and item:
            write(f"{pad}{key}:")
            _write_tree(item, depth + 1)
        elif isinstance(item, list) and item:
            write(f"{pad}{key}:")
            for entry in item:
                write(f"{pad}  - {entry}")
        elif item is not None and item not in ("", [], {}):
            write(f"{pad}{key}: {item}")
