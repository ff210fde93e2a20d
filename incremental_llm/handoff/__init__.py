"""Handoff: a stack as something others can serve.

    >>> report = export_peft(stack, adapter_folders, base_folder, out, reference=folded_model)  # doctest: +SKIP
    >>> print(report.command)                                                                   # doctest: +SKIP
    vllm serve models/base --enable-lora --max-lora-rank 64 --lora-modules tuned=exports/v3

Verbs: `export_peft` (one plain LoRA adapter that PEFT and vLLM load), `export_merged` (a whole model folder),
`check_exportable` (what can be refused before a model is loaded), `compare_logits` (how far two models are apart).

The one design fact: nothing leaves unchecked. Each export is loaded back the way a stranger would load it, its logits
are compared with those of the stack that passed the gate, and it appears under its name only within the tolerance.
"""

from incremental_llm.handoff.check import PROBES, LogitCheck, Logits, Tolerance, compare_logits
from incremental_llm.handoff.export import (
    VLLM_RANKS,
    ExportReport,
    check_exportable,
    check_unquantised,
    export_merged,
    export_peft,
)

__all__ = [
    "PROBES",
    "VLLM_RANKS",
    "ExportReport",
    "LogitCheck",
    "Logits",
    "Tolerance",
    "check_exportable",
    "check_unquantised",
    "compare_logits",
    "export_merged",
    "export_peft",
]
