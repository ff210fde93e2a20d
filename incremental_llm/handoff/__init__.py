"""Handoff: a stack as something others can serve.

    >>> source = Source(stack, adapter_folders, base_folder, reference=folded_model)  # doctest: +SKIP
    >>> report = export(source, out, "vllm")                                          # doctest: +SKIP
    >>> print(report.commands[0])                                                     # doctest: +SKIP
    vllm serve models/base --enable-lora --max-lora-rank 64 --lora-modules v3=exports/v3

Forms: `peft` and `vllm` (one plain LoRA adapter), `merged` (a whole model folder), `gguf-lora` and `gguf` (the same two
for llama.cpp). `check_exportable` refuses what can be refused before a model is loaded, `compare_logits` says how far
two models are apart.

The one design fact: nothing leaves unchecked. Each export is loaded back the way a stranger would load it, its logits
are compared with those of the stack that passed the gate, and it appears under its name only within the tolerance.
"""

from incremental_llm.handoff.adapter import VLLM_RANKS, export_gguf_lora, export_peft, export_vllm
from incremental_llm.handoff.check import PROBES, LogitCheck, Logits, Tolerance, compare_logits
from incremental_llm.handoff.export import check_exportable, export
from incremental_llm.handoff.model import export_gguf, export_merged
from incremental_llm.handoff.report import ExportReport
from incremental_llm.handoff.source import Form, Source

__all__ = [
    "PROBES",
    "VLLM_RANKS",
    "ExportReport",
    "Form",
    "LogitCheck",
    "Logits",
    "Source",
    "Tolerance",
    "check_exportable",
    "compare_logits",
    "export",
    "export_gguf",
    "export_gguf_lora",
    "export_merged",
    "export_peft",
    "export_vllm",
]
