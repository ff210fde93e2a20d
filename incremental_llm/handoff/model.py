"""A stack as a whole model, its deltas in the weights: safetensors for transformers and vLLM, GGUF for llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from incremental_llm.adapters.load import DTYPES, load_base, load_tokenizer
from incremental_llm.adapters.merge import merge_into
from incremental_llm.artifacts import staged_folder
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff.card import model_card
from incremental_llm.handoff.check import probe_ids, require_same_weights
from incremental_llm.handoff.commands import gguf_commands, merged_commands
from incremental_llm.handoff.llamacpp.model import read_model, write_model
from incremental_llm.handoff.report import ExportReport, describe
from incremental_llm.handoff.source import Form, Source, check_dtype, check_free

GGUF_FILE = "model.gguf"


def export_merged(source: Source, out: Path, *, dtype: str | None = None) -> ExportReport:
    """Write base and stack as one model, with tokenizer and chat template.

    The weights are those of the folded stack in the dtype it was measured in, written in `dtype` (that one unless
    given). Where `dtype` holds them they are compared bit for bit with a `reference` that is the folded model; logits
    alone could not tell a stack in bfloat16 from one without a small adapter.

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, or a quantised base.
        IntegrityError: a damaged adapter, or an export that differs from the reference; nothing is left at `out`.
    """
    source.require_adapters()
    dtype = dtype or source.stack.dtype

    def write(folder: Path, model: Any) -> None:
        model.to(DTYPES[dtype]).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.base_folder).save_pretrained(folder)

    def read(folder: Path) -> tuple[Any, Any]:
        return load_base(folder, dtype=source.dtype, device=source.device), load_tokenizer(folder)

    return _export(source, out, "merged", dtype, write, read, merged_commands(str(out)))


def export_gguf(source: Source, out: Path, *, dtype: str | None = None) -> ExportReport:
    """Write base and stack as `model.gguf`, with tokenizer and chat template; a stack without adapters is its base.

    Arguments and checks as for `export_merged`; it is loaded back by transformers' own reader of GGUF.

    Raises:
        InputError, IntegrityError: as `export_merged`; also an architecture or tokenizer that is not written.
    """
    dtype = dtype or source.stack.dtype

    def write(folder: Path, model: Any) -> None:
        name = Path(source.stack.base.name).name
        write_model(folder / GGUF_FILE, model, source.base_folder, dtype=dtype, name=name)

    def read(folder: Path) -> tuple[Any, Any]:
        return read_model(folder / GGUF_FILE, source.base_config, dtype=source.dtype, device=source.device)

    return _export(source, out, "gguf", dtype, write, read, gguf_commands(str(out / GGUF_FILE)))


def check_whole(source: Source, form: str) -> None:
    """Refuse to write whole models of what was measured on a 4-bit base, or is one.

    Raises:
        InputError: the stack's base is quantised.
    """
    if source.quantization != "none":
        raise InputError(
            f"this workspace serves a {source.quantization} base: merging into 4-bit weights would lose nearly all of "
            f"the adapters, and 16-bit ones were never measured. Export the adapter instead of {form}: --form peft."
        )
    source.check_unquantised()


def _export(
    source: Source,
    out: Path,
    kind: Form,
    dtype: str,
    write: Callable[[Path, Any], None],
    read: Callable[[Path], tuple[Any, Any]],
    commands: tuple[str, ...],
) -> ExportReport:
    """Fold, write, read back, compare, describe; `out` appears at the end or not at all."""
    check_dtype(dtype)
    check_free(out)
    check_whole(source, kind)
    what = f"export to {out}"
    with staged_folder(out) as folder:
        source.say(f"folding {len(source.adapters)} adapters into the base")
        model = source.load_base()
        if source.adapters:
            merge_into(model, source.adapters)
        source.say(f"writing the model in {dtype}")
        write(folder, model)
        del model  # the check loads a second copy: two at once would double the memory
        source.say("loading it back")
        written, tokenizer = read(folder)
        _require_same_tokens(source.probe_ids, probe_ids(tokenizer, source.probes), what)
        if isinstance(source.reference, PreTrainedModel) and _holds(dtype, source.stack.dtype):
            require_same_weights(written, source.reference, what)
        check = source.compare(written)
        tolerance = source.accepted(dtype)
        check.require(tolerance, what)
        report = ExportReport(out, kind, dtype, None, None, None, check, tolerance, commands)
        general = tuple(command.replace(str(out), "FOLDER") for command in commands)
        card = model_card(source, kind, dtype, check, general)
        describe(folder, source, report, {"commands": list(general)}, card)
    return report


def _holds(wide: str, narrow: str) -> bool:
    """Whether every number of the one dtype is one of the other's."""
    held: bool = torch.promote_types(DTYPES[wide], DTYPES[narrow]) == DTYPES[wide]
    return held


def _require_same_tokens(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], what: str) -> None:
    if any(a.tolist() != b.tolist() for a, b in zip(expected, found, strict=True)):
        raise IntegrityError(
            f"{what}: expected the base's tokens for the probe prompts, found others after loading the saved "
            "tokenizer and chat template. Nothing was exported."
        )
