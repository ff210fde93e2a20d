"""illm export: a version as something others can serve."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from incremental_llm.cli.console import command, next_steps, plain, result, say, write
from incremental_llm.cli.options import ConfigOption, JsonOption, SetOption, opened


class Form(StrEnum):
    """What an export is."""

    peft = "peft"
    vllm = "vllm"
    merged = "merged"
    gguf_lora = "gguf-lora"
    gguf = "gguf"


class Dtype(StrEnum):
    """What an export's weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


_FORMS = (
    "peft: one adapter for the base; vllm: one at a rank that vLLM takes; merged: a whole model; "
    "gguf-lora and gguf: the same two for llama.cpp."
)


def export(
    ref: Annotated[str, typer.Argument(help="A ref or a version, such as production or 3.")],
    out: Annotated[Path, typer.Argument(help="A folder that does not exist or is empty.")],
    form: Annotated[Form, typer.Option(help=_FORMS)] = Form.peft,
    dtype: Annotated[
        Dtype | None, typer.Option(help="To write in. Default: the stack's for a model, float32 for an adapter.")
    ] = None,
    max_error: Annotated[
        float, typer.Option(min=0, max=1, help="Accepted relative error of an adapter's deltas; 0 is exact.")
    ] = 0.0,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as adapter or as model.

    For PEFT, vLLM, transformers or llama.cpp. What was written is loaded back, and its logits are compared with those
    of the stack it comes from.
    """
    with opened(config, overrides) as workspace:
        say(f"exporting {ref} as {form.value}")
        wanted = None if dtype is None else dtype.value
        found = workspace.export(ref, out, form.value, dtype=wanted, max_error=max_error, say=say)
    if as_json:
        return result({"ref": ref, "form": form.value, **plain(found)})
    write(f"{found.folder}: {ref} as {form.value} in {found.dtype}")
    if found.rank is not None:
        how = f"off by {found.error:.3g} of its deltas, as --max-error allows" if found.error else "exact"
        write(f"rank {found.rank}, of a stack of rank {found.stack_rank}: {how}")
    measured = ", ".join(f"{name} {value:.4g}" for name, value in plain(found.check).items())
    write(f"its logits against the stack's: {measured}")
    steps = list(found.commands)
    if form is Form.gguf_lora:
        steps.append(command("illm", "export", "0", "BASE", "--form", "gguf") + "   (the base, as BASE/model.gguf)")
    return next_steps(*steps)
