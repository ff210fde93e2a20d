"""What an export is made of, read and compared with its digests before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from incremental_llm.adapters.load import DTYPES, default_device, load_base, load_tokenizer
from incremental_llm.adapters.lora import LoraAdapter, read_adapter
from incremental_llm.adapters.merge import concatenate
from incremental_llm.adapters.stack import Stack
from incremental_llm.artifacts import folder_digest
from incremental_llm.chat import Conversation
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff.check import (
    PROBES,
    TOLERANCES,
    LogitCheck,
    Logits,
    Tolerance,
    coarser,
    compare_logits,
    probe_ids,
)

Form = Literal["peft", "vllm", "merged", "gguf-lora", "gguf"]
"""What an export can be; what each is for is in docs/export.md."""

WHOLE: tuple[Form, ...] = ("merged", "gguf")
"""The forms that carry the base's weights; the others go on top of it."""


@dataclass(frozen=True)
class Source:
    """A stack to export, and how it is to be checked.

    Args:
        adapter_folders: one for each digest of `stack.adapters`, in that order.
        reference: the stack as it is served: a model (the base with every delta folded in) or its logits. Checks from
            files alone need none.
        tolerance: the accepted difference to `reference`; by default that of the coarser dtype (`TOLERANCES`).
        lineage: where the stack comes from (version, datasets, reports), written to lineage.json as it is.
        quantization: of the base that the stack was measured on and is served with, "none" or "nf4".
        say: called with a line of text before each slow step.
    """

    stack: Stack
    adapter_folders: Sequence[Path]
    base_folder: Path
    reference: torch.nn.Module | Logits | None = None
    probes: Sequence[Conversation] = PROBES
    tolerance: Tolerance | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=default_device)
    quantization: str = "none"
    say: Callable[[str], None] = lambda line: None

    @cached_property
    def adapters(self) -> tuple[LoraAdapter, ...]:
        """The adapters of the stack, each compared with its digest.

        Raises:
            InputError: folders that do not match the stack.
            IntegrityError: a damaged adapter.
        """
        return read_adapters(self.stack, self.adapter_folders)

    def require_adapters(self) -> None:
        """Raises InputError for a stack without adapters, and as `adapters`."""
        if not self.adapters:
            raise InputError(
                "expected a stack with adapters to export, found none. It is the base itself: serve "
                f"{self.stack.base.name}, or export it whole as gguf."
            )

    @cached_property
    def combined(self) -> LoraAdapter:
        """All adapters as one, exactly."""
        return concatenate(self.adapters)

    @cached_property
    def base_config(self) -> Any:
        """The base's config, as transformers has it."""
        return AutoConfig.from_pretrained(self.base_folder)

    @cached_property
    def probe_ids(self) -> list[torch.Tensor]:
        """The probes as the base's tokenizer and template write them."""
        return probe_ids(load_tokenizer(self.base_folder), self.probes)

    @property
    def revision(self) -> str | None:
        """The commit of the base where it was taken from the Hub, whose cache keeps each commit in its own folder."""
        repository, commit = self.base_folder.parent.parent.name, self.base_folder.name
        from_hub = repository == f"models--{self.stack.base.name.replace('/', '--')}"
        return commit if from_hub and re.fullmatch(r"[0-9a-f]{40}", commit) else None

    @property
    def served_base(self) -> str:
        """What a server is given as the base: its id on the Hub, or the local folder."""
        return self.stack.base.name if self.revision else str(self.base_folder)

    @property
    def dtype(self) -> torch.dtype:
        """What the stack is served in."""
        return DTYPES[self.stack.dtype]

    def accepted(self, written: str) -> Tolerance:
        """The accepted difference of an export whose weights are written in this dtype."""
        return self.tolerance or coarser(TOLERANCES[self.stack.dtype], TOLERANCES[written])

    def check_unquantised(self) -> None:
        """Raises InputError for a base whose own weights are quantised: nothing can be merged into them."""
        if getattr(self.base_config, "quantization_config", None):
            raise InputError(
                f"{self.base_folder}: expected an unquantised base to merge into, found a quantization_config. Merging "
                "into 4-bit weights loses nearly all of a delta: export the adapter instead, or dequantise the base "
                "and treat the result as a new one."
            )

    def compare(self, model: Any) -> LogitCheck:
        """How far a model is from the stack on the probes.

        Raises:
            InputError: no reference: what was not measured is never a pass.
        """
        if self.reference is None:
            raise InputError("expected the stack's own model to compare an export with, found none. Give `reference`.")
        self.say(f"comparing its logits with the stack's on {len(self.probes)} prompts")
        return compare_logits(self.reference, model, self.probe_ids)

    def load_base(self) -> Any:
        """A fresh base, as the stack is served on."""
        return load_base(self.base_folder, dtype=self.dtype, device=self.device, quantization=self.quantization)


def read_adapters(stack: Stack, folders: Sequence[Path]) -> tuple[LoraAdapter, ...]:
    """The adapters of a stack; raises as `Source.adapters`."""
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
    return tuple(read_adapter(folder) for folder in folders)


def check_free(out: Path) -> None:
    """Raises InputError where something is at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out}: expected a folder that does not exist or is empty, found something there. "
            "Give another folder, or remove this one first: an export never overwrites."
        )


def check_dtype(dtype: str) -> None:
    """Raises InputError for a dtype that no stack is served and no export written in."""
    if dtype not in DTYPES:
        raise InputError(f"expected one of the dtypes {', '.join(DTYPES)}, found {dtype!r}.")
