"""illm review: the queue of what the compiler or the model is unsure about, in the shell."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import command, next_steps, progress_reporter, result, table, write
from incremental_llm.cli.ingest import feedback_store
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened, read_config
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.feedback.review import Item, ReviewerRow, ReviewQueue, Share
    from incremental_llm.feedback.review.items import State

app = typer.Typer(help="Decide what the compiler or the model is unsure about.", no_args_is_help=True)

_BEGINS = 60
_LIKE = 1000
"""Items of the queue that seeded ones are made to look like."""

ReviewerOption = Annotated[str, typer.Option("--reviewer", "-r", help="In whose name.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="An item, as illm review list shows it.")]


@contextlib.contextmanager
def _queue(config: Path | None, overrides: list[str] | None) -> Iterator[ReviewQueue]:
    from incremental_llm.unsettled import review_queue

    with feedback_store(config, overrides) as store:
        yield review_queue(store, read_config(config, overrides))


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Option("--kind", "-k", help="conflict, low_margin, safety or moderation only.", show_default=False),
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", "-r", help="What this one may decide.", show_default=False)
    ] = None,
    done: Annotated[bool, typer.Option("--done", help="What is decided instead of what is not.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is to review, most urgent first."""
    with _queue(config, overrides) as queue:
        _check_kind(kind)
        states: tuple[State, ...] = ("done",) if done else ("open", "claimed", "waiting")
        found = queue.items(kind=kind, states=states, reviewer=reviewer, limit=limit)
        counts = queue.counts(reviewer)
    if as_json:
        return result({"items": [_record(item) for item in found], "counts": counts})
    table("to review" if not done else "reviewed", [_row(item) for item in found], empty="nothing")
    write(", ".join(f"{count} {state}" for state, count in counts.items()))
    return next_steps("illm review next --reviewer NAME", "illm serve-ingest   # and open /review in a browser")


@app.command()
def show(
    item: IdArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show one item: prompt, reply, who says what."""
    with _queue(config, overrides) as queue:
        found = queue.get(item)
    if as_json:
        return result(_record(found))
    _show(found)
    return next_steps(f"illm review decide {item} accept --reviewer NAME")


@app.command("next")
def next_(
    reviewer: ReviewerOption, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Claim the next item and show it; nobody else gets it for a while."""
    with _queue(config, overrides) as queue:
        claim = queue.next(reviewer)
    if as_json:
        return result(None if claim is None else {**_record(claim.item), "expires": claim.expires})
    if claim is None:
        write(f"nothing to review for {reviewer}")
        return next_steps("illm review list", "illm review report")
    _show(claim.item)
    write(f"yours until {claim.expires:%H:%M} UTC")
    decide, who = ("illm", "review", "decide", claim.item.id), ("--reviewer", reviewer)
    return next_steps(command(*decide, "accept", *who), command(*decide, "correct", "--file", "-", *who))


@app.command()
def decide(
    item: IdArgument,
    verdict: Annotated[
        str,
        typer.Argument(
            metavar="VERDICT",
            help="accept (of two: the first is better), reject (the second is), correct or skip.",
        ),
    ],
    reviewer: ReviewerOption,
    content: Annotated[
        str | None, typer.Option("--content", help="The right reply, with correct.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="The right reply, byte for byte; - reads it from stdin.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide an item, claiming it first. What is decided is feedback in the reviewer's name."""
    from incremental_llm.feedback.review.items import VERDICTS

    if content is not None and file is not None:
        raise InputError("expected --content or --file, found both. Give one.")
    text = _text(file) if file is not None else content
    known = next((name for name in VERDICTS if name == verdict), None)
    if known is None:
        raise InputError(f"expected a verdict out of {', '.join(VERDICTS)}, found {verdict!r}. Nothing was decided.")
    with _queue(config, overrides) as queue:
        queue.claim(item, reviewer)
        done = queue.decide(item, reviewer, known, text)
    if as_json:
        return result(done)
    told = {"waiting": "stored; it counts when another reviewer says the same", "done": "done"}
    write(f"{item}: {told.get(done.state, 'left to others')}")
    return next_steps(command("illm", "review", "next", "--reviewer", reviewer))


@app.command()
def fill(
    low_margin: Annotated[
        int,
        typer.Option("--low-margin", min=0, help="Also so many pairs that production hardly prefers a reply of."),
    ] = 0,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put in what pending feedback leaves to people. Every run does so; twice adds nothing."""
    with opened(config, overrides) as workspace, progress_reporter() as progress:
        new = workspace.fill_review(low_margin, progress)
    if as_json:
        return result({"added": new})
    write(f"{new} new to review")
    return next_steps("illm review list")


@app.command()
def seed(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL with prompt, reply and expected verdict.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mix in items of which the verdict is known; they never become feedback."""
    from incremental_llm.feedback.review import read_seeds

    with _queue(config, overrides) as queue:
        seeds = read_seeds(file, queue.items(limit=_LIKE))
        added = queue.add(seeds)
        share = queue.settings.seed_share
    if as_json:
        return result({"added": added, "known": len(seeds) - added})
    write(f"{added} added, {len(seeds) - added} known already; {share:.0%} of what a reviewer gets are seeded ones")
    return next_steps("illm review report")


@app.command()
def report(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show how reviewers do: decisions, agreement with others, seeded items caught, seconds."""
    from incremental_llm.feedback.review import agreement

    with _queue(config, overrides) as queue:
        found = agreement(queue)
    if as_json:
        return result({**vars(found), "reviewers": [_reviewer(row) for row in found.reviewers]})
    table("reviewers", [_reviewer_row(row) for row in found.reviewers], empty="none has decided anything")
    if found.alpha is not None:
        write(f"Krippendorff's alpha {found.alpha:.2f} on {found.shared} items that two or more have judged")
    return next_steps("illm review list", "illm review seed FILE")


def _check_kind(kind: str | None) -> None:
    from typing import get_args

    from incremental_llm.feedback.review.items import Kind

    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"expected a kind out of {', '.join(get_args(Kind))}, found {kind!r}.")


def _text(file: Path) -> str:
    """The bytes of a file as they are, line ends and all."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a text in UTF-8, found none ({error}).") from error


def _record(item: Item) -> dict[str, Any]:
    """An item without what would give a seeded one away."""
    hidden = {"expected", "about", "interaction", "other_interaction", "sources", "authors"}
    about = item.proposal.model_dump(mode="json", exclude=hidden)
    times = {"created": item.created, "claimed_by": item.claimed_by, "decided": item.decided}
    return {"id": item.id, "state": item.state, **about, **times}


def _row(item: Item) -> dict[str, Any]:
    from incremental_llm.chat import last_user_text

    about = item.proposal
    return {
        "id": item.id,
        "kind": about.kind,
        "because": about.reason,
        "priority": round(about.priority, 2),
        "state": item.state,
        "asked": _shortened(last_user_text(about.prompt)),
        "reply": _shortened(about.reply),
    }


def _show(item: Item) -> None:
    from incremental_llm.feedback.review.items import HINTS

    about = item.proposal
    write(f"{item.id}  {about.kind}: {about.reason}. {HINTS.get(about.reason, '')}".rstrip())
    for message in about.prompt:
        write(f"{message.role}: {_printable(message.content)}")
    names = ("first reply", "second reply") if about.other is not None else ("reply",)
    for name, reply in zip(names, (about.reply, about.other or ""), strict=False):
        write(f"{name}: {_printable(reply)}")
    for voice in about.voices:
        write(f"  {_printable(voice.who)}: {_printable(voice.says)}")


def _printable(text: str) -> str:
    """A text whose control and direction characters do nothing to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str) -> str:
    line = _printable(" ".join(text.split()))
    return line if len(line) <= _BEGINS else line[: _BEGINS - 1] + "…"


def _reviewer(row: ReviewerRow) -> dict[str, Any]:
    return {**vars(row), "agreed": _share(row.agreed), "caught": _share(row.caught)}


def _share(found: Share) -> dict[str, Any]:
    return {"right": found.right, "n": found.n, "share": found.share, "interval": found.interval}


def _reviewer_row(row: ReviewerRow) -> dict[str, Any]:
    return {
        "reviewer": row.reviewer,
        "decisions": row.decisions,
        "skipped": row.skipped,
        "agreed with others": _told(row.agreed),
        "seeded caught": _told(row.caught),
        "median seconds": round(row.seconds, 1),
    }


def _told(found: Share) -> str:
    """ "7 of 8 (0.53 to 0.98)"."""
    if found.interval is None:
        return "-"
    low, high = found.interval
    return f"{found.right} of {found.n} ({low:.2f} to {high:.2f})"
