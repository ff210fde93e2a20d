"""illm export: a version as something others can serve."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from incremental_llm.cli.console import next_steps, plain, result, say, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened


class Form(StrEnum):
    """What an export is."""

    peft = "peft"
    merged = "merged"


def export(
    ref: Annotated[str, typer.Argument(help="A ref or a version, such as production or 3.")],
    out: Annotated[Path, typer.Argument(help="A folder that does not exist or is empty.")],
    form: Annotated[Form, typer.Option(help="peft: one adapter for the base; merged: a whole model.")] = Form.peft,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as adapter or as model.

    A plain PEFT folder or a merged model, its logits checked against the stack it comes from.
    """
    with opened(config, overrides) as workspace:
        base = workspace.config.base
        say(f"exporting {ref} as {form.value}, and checking its logits against the stack")
        found = workspace.export(ref, out, form.value)
    if as_json:
        return result({"ref": ref, "form": form.value, **plain(found)})
    write(f"{found.folder}: {ref} as {form.value}")
    measured = ", ".join(f"{name} {value:.4g}" for name, value in plain(found.check).items())
    write(f"its logits against the stack's: {measured}")
    path = str(found.folder)
    if form is Form.merged:
        return next_steps(f"AutoModelForCausalLM.from_pretrained({path!r})", found.command)
    return next_steps(f"PeftModel.from_pretrained(model, {path!r})   (model: the base, {base})", found.command)
