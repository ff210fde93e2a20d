"""illm patch: one correction at once, and what else it would move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from incremental_llm.cli.console import next_steps, progress_reporter, result, table, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened

if TYPE_CHECKING:
    from incremental_llm.training.patch import PatchRecord

PromptOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="One more prompt that must not move; may be repeated."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="A folder that does not exist; by default one in the workspace.", show_default=False),
]
MayMoveOption = Annotated[
    float | None,
    typer.Option(
        "--may-move",
        metavar="SHARE",
        min=0,
        max=1,
        help="Share of the neighbouring prompts that may move; none by default.",
        show_default=False,
    ),
]


def patch(
    event: Annotated[str, typer.Argument(metavar="EVENT_ID", help="Id of a correction in the log.")],
    prompts: PromptOption = None,
    may_move: MayMoveOption = None,
    out: OutOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try one correction at once.

    A minimal adapter on production that gives the corrected answer, checked on neighbouring and on unrelated prompts.
    Adapter and check are written to a folder. Nothing is promoted: the correction stays for the next increment.
    """
    from incremental_llm.training.settings import PatchSettings

    with opened(config, overrides) as workspace, progress_reporter() as progress:
        told = {"seed": workspace.config.training.seed}
        settings = PatchSettings.model_validate(told | ({} if may_move is None else {"neighbours_may_move": may_move}))
        record = workspace.patch(event, out, prompts=prompts or (), settings=settings, progress=progress)
    if as_json:
        return result(record)
    return _show(event, record)


def _show(event: str, record: PatchRecord) -> None:
    groups = (("neighbouring", record.neighbours), ("unrelated", record.unrelated))
    rows = [
        {
            "prompts": name,
            "checked": group.count,
            "moved": len(group.moved),
            "near ties": group.changed - sum(one.before != one.after for one in group.moved),
            "mean KL": f"{group.mean_kl:.4f}",
            "largest KL": f"{group.max_kl:.4f}",
        }
        for name, group in groups
    ]
    write(f"before: {record.answer_before}")
    write(f"after:  {record.answer_after}")
    write(f"NLL of the correction {record.nll_before:.3f} -> {record.nll_after:.3f} nats a token")
    table("what else moved (KL in nats a token, on the answers from before)", rows)
    for one in (one for _, group in groups for one in group.moved):
        write(f"moved: {one.prompt!r}: {one.before!r} -> {one.after!r}")
    write(
        f"{record.steps} steps on {record.parameters} parameters, scaled to {record.scale:.2f}; {record.seconds:.1f} s "
        f"for {event}; adapter in {record.adapter}"
    )
    next_steps("illm run   (the correction is part of the next increment)", "illm dataset show")
