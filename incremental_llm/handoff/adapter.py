"""A stack as one LoRA adapter that goes on top of its base: for PEFT, for vLLM, and for llama.cpp."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from incremental_llm.adapters.load import DTYPES
from incremental_llm.adapters.lora import LoraAdapter, read_adapter, write_adapter
from incremental_llm.adapters.merge import padded, reduce_rank
from incremental_llm.artifacts import staged_folder
from incremental_llm.errors import InputError
from incremental_llm.handoff.card import adapter_card
from incremental_llm.handoff.check import (
    ROUNDING,
    UNBOUNDED,
    relative_error,
    require_same_deltas,
)
from incremental_llm.handoff.commands import gguf_lora_commands, peft_commands, vllm_commands
from incremental_llm.handoff.llamacpp.adapter import read_adapter_gguf, write_adapter_gguf
from incremental_llm.handoff.report import ExportReport, describe
from incremental_llm.handoff.source import Form, Source, check_dtype, check_free

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (vllm/config/lora.py)."""

GGUF_FILE = "adapter.gguf"


@dataclass(frozen=True)
class Fitted:
    """The stack as one adapter, every module at `rank`, its numbers as they are written; and how far off it is."""

    adapter: LoraAdapter
    stack_rank: int
    rank: int
    error: float
    note: str


def fitted(source: Source, kind: Form, dtype: str = "float32", max_error: float = 0.0) -> Fitted:
    """The adapter that an export writes: concatenated, which is exact, and padded with zeros, which is exact.

    Above vLLM's largest rank a "vllm" one is the best of that rank (`reduce_rank`).

    Args:
        dtype: of the written factors; anything but float32 rounds them.
        max_error: the relative Frobenius error that is accepted, 0 to 1.

    Raises:
        InputError: no adapters, an unknown dtype, or an error above `max_error`.
    """
    check_dtype(dtype)
    source.require_adapters()
    combined = source.combined
    stack_rank = max(combined.ranks.values())
    rank = stack_rank if kind != "vllm" else next((r for r in VLLM_RANKS if stack_rank <= r), VLLM_RANKS[-1])
    note = f"padded with zeros to {rank}; the deltas are unchanged"
    if stack_rank > rank:
        combined, _ = reduce_rank(combined, rank)
        note = f"reduced by SVD from {stack_rank} to {rank}, the largest that vLLM serves"
    adapter = _rounded(padded(combined, rank), DTYPES[dtype])
    exact = stack_rank <= rank and dtype == "float32"
    error = 0.0 if exact else relative_error(adapter, source.adapters)
    if error > max(max_error, ROUNDING):
        raise InputError(
            f"expected a relative error of at most {max_error:g}, found {error:.3g} for a stack of rank {stack_rank} "
            f"at rank {rank} in {dtype}. Allow it with --max-error {_above(error)}, or export the merged model, or "
            "consolidate the stack first."
        )
    return Fitted(adapter, stack_rank, rank, error if error > ROUNDING else 0.0, note)


def export_peft(source: Source, out: Path, *, dtype: str = "float32", max_error: float = 0.0) -> ExportReport:
    """Write the stack as one plain LoRA adapter that `PeftModel.from_pretrained` loads.

    rsLoRA is folded into the factors and every module has one rank, so that no reader can scale a part wrongly. Base
    and revision are in adapter_config.json, the digest of the base in the card and in export.json.

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, or an error above `max_error`.
        IntegrityError: a damaged adapter, or an export that differs from the reference; nothing is left at `out`.
    """
    return _export_folder(source, out, "peft", source.stack.base.name, dtype, max_error)


def export_vllm(source: Source, out: Path, *, dtype: str = "float32", max_error: float = 0.0) -> ExportReport:
    """Write the stack as one PEFT folder at a rank that vLLM takes, to be found by vLLM's resolver under its name.

    `base_model_name_or_path` is what `vllm serve` is given: the resolver compares the two.

    Raises:
        InputError, IntegrityError: as `export_peft`; also a rank above vLLM's largest whose best approximation is
            further off than `max_error`.
    """
    return _export_folder(source, out, "vllm", source.served_base, dtype, max_error)


def export_gguf_lora(source: Source, out: Path, *, dtype: str = "float32", max_error: float = 0.0) -> ExportReport:
    """Write the stack as `adapter.gguf`, which llama.cpp puts on top of the base in GGUF.

    It is read back with the package gguf, its rows put in transformers' order, and run by PEFT.

    Raises:
        InputError, IntegrityError: as `export_peft`; also an architecture that is not written, or a 4-bit base.
    """
    check_free(out)
    check_gguf_base(source)
    fit = fitted(source, "gguf-lora", dtype, max_error)

    def write(folder: Path) -> None:
        name = f"{Path(source.stack.base.name).name} adapter"
        write_adapter_gguf(folder / GGUF_FILE, fit.adapter, source.base_config, dtype=dtype, name=name)

    def read(folder: Path, base: Any) -> LoraAdapter:
        linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
        return read_adapter_gguf(folder / GGUF_FILE, source.base_config, linear)

    commands = gguf_lora_commands("BASE/model.gguf", str(out / GGUF_FILE))
    return _export(source, out, "gguf-lora", fit, dtype, write, read, commands)


def check_gguf_base(source: Source) -> None:
    """Raises InputError for a stack measured on a 4-bit base, which llama.cpp does not have."""
    if source.quantization != "none":
        raise InputError(
            f"this stack was measured on a {source.quantization} base, which llama.cpp does not serve, and 16-bit "
            "weights were never measured. Export the adapter instead: --form peft."
        )


def _export_folder(source: Source, out: Path, kind: Form, base: str, dtype: str, max_error: float) -> ExportReport:
    check_free(out)
    fit = fitted(source, kind, dtype, max_error)

    def write(folder: Path) -> None:
        write_adapter(folder, fit.adapter.modules, base, dtype=DTYPES[dtype], revision=source.revision)

    def read(folder: Path, base: Any) -> LoraAdapter:
        return read_adapter(folder)

    return _export(source, out, kind, fit, dtype, write, read, _commands(source, kind, str(out), fit.rank))


def _commands(source: Source, kind: Form, folder: str, rank: int) -> tuple[str, ...]:
    if kind == "vllm":
        return vllm_commands(source.served_base, source.revision, folder, rank)
    return peft_commands(source.served_base, source.revision, folder)


def _export(
    source: Source,
    out: Path,
    kind: Form,
    fit: Fitted,
    dtype: str,
    write: Callable[[Path], None],
    read: Callable[[Path, Any], LoraAdapter],
    commands: tuple[str, ...],
) -> ExportReport:
    """Write, read back, compare, describe; `out` appears at the end or not at all."""
    what = f"export to {out}"
    with staged_folder(out) as folder:
        source.say(f"writing an adapter of rank {fit.rank}")
        write(folder)
        source.say("loading it back")
        base = source.load_base()
        written = read(folder, base)
        require_same_deltas(written, source.adapters if fit.error == 0 else [fit.adapter], what)
        check = source.compare(_with_peft(base, folder, written, source))
        tolerance = source.accepted("float32") if fit.error == 0 else UNBOUNDED
        check.require(tolerance, what)
        report = ExportReport(out, kind, dtype, fit.stack_rank, fit.rank, fit.error, check, tolerance, commands)
        ranks = {"stack": dict(sorted(source.combined.ranks.items())), "exported": fit.rank, "note": fit.note}
        general = tuple(_general(command, source, out) for command in commands)
        facts = {"ranks": ranks, "relative_error": fit.error, "commands": list(general)}
        describe(folder, source, report, facts, adapter_card(source, kind, fit.rank, fit.error, check, general))
    return report


def _with_peft(base: Any, folder: Path, written: LoraAdapter, source: Source) -> Any:
    """The base with the adapter that was read back, run by PEFT: from its own folder where it has one."""
    if (folder / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(base, folder, torch_device=str(source.device)).eval()
    with tempfile.TemporaryDirectory() as scratch:
        write_adapter(Path(scratch), written.modules, source.stack.base.name, scaling=written.scaling)
        return PeftModel.from_pretrained(base, scratch, torch_device=str(source.device)).eval()


def _general(command: str, source: Source, out: Path) -> str:
    """A command without the paths of this machine, for files that are sent elsewhere."""
    general = command.replace(str(out), "FOLDER").replace(str(out.parent), "PARENT")
    return general if source.revision else general.replace(source.served_base, "BASE")


def _rounded(adapter: LoraAdapter, dtype: torch.dtype) -> LoraAdapter:
    modules = {name: (A_RI.to(dtype).float(), B_OR.to(dtype).float()) for name, (A_RI, B_OR) in adapter.modules.items()}
    return LoraAdapter(adapter.config, modules, adapter.scaling)


def _above(error: float) -> str:
    """A round number just above `error`, to be given as the limit."""
    return f"{error * 1.1:.2g}"
