"""illm chat: talk to any version."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import command, next_steps, result, say, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened
from incremental_llm.errors import InputError

if TYPE_CHECKING:
    from incremental_llm.chat import Message
    from incremental_llm.workspace import Workspace

LEAVE = frozenset({"/exit", "/quit"})
FORGET = "/new"


def chat(
    ref: Annotated[str, typer.Argument(help="A ref or a version, such as production or 3.")] = "production",
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Answer this one message and leave.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a version. `/new` starts another conversation, `/exit` leaves; piped lines are one conversation."""
    if as_json and message is None:
        raise InputError("chat --json: expected --message TEXT to answer, found none. Give one.")
    with opened(config, overrides) as workspace:
        if message is not None:
            answer = _answer(workspace, ref, [], message, max_new_tokens)
            if as_json:
                return result({"ref": ref, "message": message, "answer": answer})
            write(answer)
        else:
            _conversation(workspace, ref, max_new_tokens)
    return next_steps("illm registry list", command("illm", "evaluate", ref))


def _conversation(workspace: Workspace, ref: str, max_new_tokens: int) -> None:
    asking = sys.stdin.isatty()
    say(f"loading {ref}; /new starts another conversation, /exit leaves")
    history: list[Message] = []
    while True:
        if asking:
            typer.echo("you> ", nl=False)
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text in LEAVE:
            return
        if text == FORGET:
            history.clear()
        elif text:
            write(f"{ref}> {_answer(workspace, ref, history, text, max_new_tokens)}")


def _answer(workspace: Workspace, ref: str, history: list[Message], text: str, max_new_tokens: int) -> str:
    """The model's answer; question and answer join the history."""
    from incremental_llm.chat import Message

    history.append(Message(role="user", content=text))
    answer = workspace.chat(ref, list(history), max_new_tokens)
    history.append(Message(role="assistant", content=answer))
    return answer
