"""Exports of a stack: one plain LoRA adapter, or one merged model; each checked against the stack it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from incremental_llm.adapters.load import DTYPES, default_device, load_base, load_tokenizer
from incremental_llm.adapters.lora import LoraAdapter, read_adapter, write_adapter
from incremental_llm.adapters.merge import concatenate, merge_into, padded
from incremental_llm.adapters.stack import Stack
from incremental_llm.artifacts import folder_digest, staged_folder, write_json
from incremental_llm.chat import Conversation
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff.card import merged_card, merged_command, peft_card, peft_command
from incremental_llm.handoff.check import (
    PROBES,
    TOLERANCES,
    LogitCheck,
    Logits,
    Tolerance,
    compare_logits,
    probe_ids,
    require_same_deltas,
    require_same_weights,
)

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM serves; any other is refused there."""

EXPORT_FILE = "export.json"
LINEAGE_FILE = "lineage.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class ExportReport:
    """An export that was written and checked.

    `stack_rank` is the largest rank of the concatenated stack, `rank` that of the exported adapter after padding; both
    None for a merged model. `command` serves the export with vLLM.
    """

    folder: Path
    kind: Literal["peft", "merged"]
    stack_rank: int | None
    rank: int | None
    check: LogitCheck
    tolerance: Tolerance
    command: str


def check_exportable(
    stack: Stack, adapter_folders: Sequence[Path], out: Path, form: Literal["peft", "merged"] = "peft"
) -> None:
    """Refuse what no export can be made of, from files alone: to be called before any model is loaded.

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, an unknown dtype, or as "peft" a rank
            above vLLM's largest.
        IntegrityError: a damaged adapter.
    """
    _accepted(stack, None)
    adapters = _adapters(stack, adapter_folders, out)
    if form == "peft":
        _served_rank(max(concatenate(adapters).ranks.values()))


def export_peft(
    stack: Stack,
    adapter_folders: Sequence[Path],
    base_folder: Path,
    out: Path,
    *,
    reference: torch.nn.Module | Logits,
    probes: Sequence[Conversation] = PROBES,
    tolerance: Tolerance | None = None,
    lineage: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    quantization: str = "none",
) -> ExportReport:
    """Write the stack as one plain LoRA adapter that `PeftModel.from_pretrained` and vLLM load.

    The adapters are concatenated along the rank (exact), rsLoRA is folded into the factors, and every module is padded
    with zeros (exact) to one rank that vLLM takes.

    Args:
        adapter_folders: one for each digest of `stack.adapters`, in that order.
        reference: the stack as it is served: a model (the base with every delta folded in) or its logits.
        tolerance: the accepted difference to `reference`; by default that of the stack's dtype (`TOLERANCES`).
        lineage: where the stack comes from (version, datasets, reports), written to lineage.json as it is.
        quantization: of the base that the stack was measured on and is served with, "none" or "nf4".

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, or a rank above vLLM's largest.
        IntegrityError: a damaged adapter, or an export that differs from `reference`; nothing is left at `out`.
    """
    accepted = _accepted(stack, tolerance)
    adapters = _adapters(stack, adapter_folders, out)
    combined = concatenate(adapters)
    stack_rank = max(combined.ranks.values())
    rank = _served_rank(stack_rank)
    with staged_folder(out) as folder:
        write_adapter(folder, padded(combined, rank).modules, stack.base.name)
        require_same_deltas(read_adapter(folder), adapters, f"export to {out}")
        base = load_base(base_folder, dtype=DTYPES[stack.dtype], device=device, quantization=quantization)
        model = PeftModel.from_pretrained(base, folder, torch_device=str(device or default_device()))
        check = compare_logits(reference, model, probe_ids(load_tokenizer(base_folder), probes))
        check.require(accepted, f"export to {out}")
        ranks = {
            "stack": dict(sorted(combined.ranks.items())),
            "exported": rank,
            "note": f"padded with zeros to {rank}, a rank that vLLM serves; the deltas are unchanged",
        }
        facts = {"kind": "peft", "ranks": ranks, "command": peft_command("BASE", "FOLDER", rank)}
        _describe(folder, stack, facts, check, accepted, lineage, peft_card(stack, rank, check))
    return ExportReport(out, "peft", stack_rank, rank, check, accepted, peft_command(str(base_folder), str(out), rank))


def export_merged(
    stack: Stack,
    adapter_folders: Sequence[Path],
    base_folder: Path,
    out: Path,
    *,
    reference: torch.nn.Module | Logits,
    probes: Sequence[Conversation] = PROBES,
    tolerance: Tolerance | None = None,
    lineage: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> ExportReport:
    """Write base and stack as one model in the stack's dtype, with tokenizer and chat template.

    Arguments as for `export_peft`. The weights are those of the folded stack, bit for bit, which is checked where
    `reference` is the folded model; logits alone could not tell a stack in bfloat16 from one without a small adapter.

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, or a quantised base.
        IntegrityError: a damaged adapter, or an export that differs from `reference`; nothing is left at `out`.
    """
    accepted = _accepted(stack, tolerance)
    adapters = _adapters(stack, adapter_folders, out)
    check_unquantised(base_folder)
    dtype = DTYPES[stack.dtype]
    with staged_folder(out) as folder:
        tokenizer = load_tokenizer(base_folder)
        model = load_base(base_folder, dtype=dtype, device=device)
        merge_into(model, adapters)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)
        del model  # the check loads a second copy: two at once would double the memory
        ids = probe_ids(tokenizer, probes)
        _require_same_tokens(ids, probe_ids(load_tokenizer(folder), probes), out)
        written = load_base(folder, dtype=dtype, device=device)
        if isinstance(reference, PreTrainedModel):
            require_same_weights(written, reference, f"export to {out}")
        check = compare_logits(reference, written, ids)
        check.require(accepted, f"export to {out}")
        facts = {"kind": "merged", "dtype": stack.dtype, "command": merged_command("FOLDER")}
        _describe(folder, stack, facts, check, accepted, lineage, merged_card(stack, check))
    return ExportReport(out, "merged", None, None, check, accepted, merged_command(str(out)))


def _accepted(stack: Stack, tolerance: Tolerance | None) -> Tolerance:
    if stack.dtype not in DTYPES:
        raise InputError(f"expected a stack in one of {', '.join(DTYPES)}, found {stack.dtype!r}.")
    return tolerance or TOLERANCES[stack.dtype]


def _adapters(stack: Stack, folders: Sequence[Path], out: Path) -> list[LoraAdapter]:
    """The adapters of the stack, read and compared with their digests, once `out` is known to be free."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out}: expected a folder that does not exist or is empty, found something there. "
            "Give another folder, or remove this one first: an export never overwrites."
        )
    if not stack.adapters:
        raise InputError(
            f"expected a stack with adapters to export, found none. It is the base itself: serve {stack.base.name}."
        )
    if len(folders) != len(stack.adapters):
        raise InputError(
            f"expected {len(stack.adapters)} adapter folders, one for each of the stack, found {len(folders)}."
        )
    for folder, digest in zip(folders, stack.adapters, strict=True):
        if not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of adapter {digest[:12]}, found none.")
        found = folder_digest(folder)
        if found != digest:
            raise IntegrityError(
                f"{folder}: expected the adapter with digest {digest[:12]}, found {found[:12]}. "
                "Its files were changed or it is another adapter: restore it from a copy."
            )
    return [read_adapter(folder) for folder in folders]


def _served_rank(rank: int) -> int:
    """The smallest rank of vLLM that holds `rank`."""
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise InputError(
        f"expected a stack of rank {VLLM_RANKS[-1]} or less, which is vLLM's largest, found {rank}. "
        "Export the merged model instead, or consolidate the stack first."
    )


def check_unquantised(base_folder: Path) -> None:
    """Raises InputError for a base whose own weights are quantised: nothing can be merged into them."""
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise InputError(
            f"{base_folder}: expected an unquantised base to merge into, found a quantization_config. Merging into "
            "4-bit weights loses nearly all of a delta: export the adapter instead, or dequantise the base and treat "
            "the result as a new one."
        )


def _require_same_tokens(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], out: Path) -> None:
    if any(a.tolist() != b.tolist() for a, b in zip(expected, found, strict=True)):
        raise IntegrityError(
            f"export to {out}: expected the base's tokens for the probe prompts, found others after loading the saved "
            "tokenizer and chat template. Nothing was exported."
        )


def _describe(
    folder: Path,
    stack: Stack,
    facts: Mapping[str, Any],
    check: LogitCheck,
    tolerance: Tolerance,
    lineage: Mapping[str, Any] | None,
    card: str,
) -> None:
    """Write what was exported and measured, where it comes from, and the card."""
    measured = {**asdict(check), "dtype": stack.dtype, "tolerance": asdict(tolerance)}
    base = stack.base.model_dump(mode="json")
    write_json(folder / EXPORT_FILE, {**facts, "stack": stack.digest, "base": base, "check": measured})
    origin = {"stack": {"digest": stack.digest, **stack.model_dump(mode="json")}, "source": dict(lineage or {})}
    write_json(folder / LINEAGE_FILE, origin)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
