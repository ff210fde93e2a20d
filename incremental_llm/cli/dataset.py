"""illm dataset: what the next increment would train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from incremental_llm.cli.console import next_steps, result, say, table, terminal, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

if TYPE_CHECKING:
    from incremental_llm.chat import Conversation
    from incremental_llm.dataset import CompiledDataset
    from incremental_llm.dataset.examples import Example

app = typer.Typer(help="See what a run would train on.", no_args_is_help=True)

OPEN, CLOSE = "[[", "]]"
"""Around trained tokens where there are no colours."""

_COLOURS = {"good": ("green", "bright_green"), "bad": ("red", "bright_red")}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@app.callback()
def group() -> None:
    """See what a run would train on."""


@app.command()
def show(
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, help="How many of each kind.")] = 3,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile the new feedback, write nothing, and show samples with their trained tokens marked.

    Green (or [[...]]) is trained towards, red away from; everything else is context that no loss looks at.
    """
    with opened(config, overrides) as workspace:
        say("compiling the new feedback")
        dataset = workspace.compile_preview()
        kinds: dict[str, tuple[Example, ...]]
        kinds = {"sft": dataset.sft, "pair": dataset.pairs, "unpaired": dataset.unpaired}
        if as_json:
            shown = {kind: examples[:samples] for kind, examples in kinds.items()}
            return result({**_account(dataset), "samples": shown})
        chosen = [example for examples in kinds.values() for example in examples[:samples]]
        tokenizer = workspace.tokenizer if chosen else None
    for example in chosen:
        _write_sample(tokenizer, example)
    for title, counts in _account(dataset).items():
        table(title.replace("_", " "), [{"what": what, "count": count} for what, count in counts.items()])
        write()
    return next_steps("illm run --dry-run", "illm run")


def segments(tokenizer: Any, prompt: Conversation, completion: str) -> tuple[str, tuple[str, ...]]:
    """The context as the model reads it, and the text of each trained token behind it.

    Tokens that only together make a character are one text.
    """
    from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids

    context = str(tokenizer.decode(prompt_ids(tokenizer, prompt)))
    return context, tuple(_token_texts(tokenizer, completion_ids(tokenizer, prompt, completion)))


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    start = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[start:end]))
        if not text.endswith(_REPLACEMENT) or end == len(ids):
            yield text
            start = end


def _account(dataset: CompiledDataset) -> dict[str, dict[str, int]]:
    """Records by kind, what was dropped by reason, and what became of each event."""
    dropped = Counter(f"{drop.kind}: {drop.reason.value}" for drop in dataset.drops)
    weighted = {} if dataset.weighting is None else {"weighted by propensity": dataset.weighting.model_dump()}
    return {
        "records": {"sft": len(dataset.sft), "pair": len(dataset.pairs), "unpaired": len(dataset.unpaired)},
        "dropped": dict(dropped.most_common()),
        "replaced by placeholders": dict(dataset.redacted),
        "events": {
            f"{kind}: {outcome}": count
            for kind, outcomes in dataset.outcomes.items()
            for outcome, count in outcomes.items()
        },
        **weighted,
    }


def _replies(example: Example) -> Iterator[tuple[str, str, bool]]:
    """What each trained reply is called, its text, and whether it is trained towards."""
    if example.kind == "pair":
        yield "chosen", example.chosen, True
        yield "rejected", example.rejected, False
    elif example.kind == "unpaired":
        yield ("desirable" if example.desirable else "undesirable"), example.completion, example.desirable
    else:
        yield "reply", example.completion, True


def _write_sample(tokenizer: Any, example: Example) -> None:
    users = len(example.users)
    where = f"from {', '.join(example.sources)} of {users} user{'' if users == 1 else 's'}"
    write(f"--- {example.kind}, weight {example.weight:g}, {where}")
    for name, text, good in _replies(example):
        context, trained = segments(tokenizer, example.prompt, text)
        write(f"{name}, {len(trained)} trained tokens:")
        _write_marked(context, trained, good)
    write()


def _write_marked(context: str, trained: Sequence[str], good: bool) -> None:
    if not terminal():
        write(f"{context}{OPEN}{''.join(trained)}{CLOSE}")
        return
    from rich.console import Console
    from rich.text import Text

    line = Text()
    line.append(context, style="dim")
    for number, token in enumerate(trained):
        line.append(token, style=_COLOURS["good" if good else "bad"][number % 2])
    Console(highlight=False).print(line, soft_wrap=True)
