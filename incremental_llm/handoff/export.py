"""One call for every form: what can be refused is refused from files alone, before any model is loaded."""

from __future__ import annotations

from pathlib import Path

from incremental_llm.errors import InputError
from incremental_llm.handoff.adapter import check_gguf_base, export_gguf_lora, export_peft, export_vllm, fitted
from incremental_llm.handoff.llamacpp.architecture import architecture_of
from incremental_llm.handoff.llamacpp.vocabulary import check_vocabulary
from incremental_llm.handoff.model import check_whole, export_gguf, export_merged
from incremental_llm.handoff.report import ExportReport
from incremental_llm.handoff.source import WHOLE, Form, Source, check_dtype, check_free

_ADAPTERS = {"peft": export_peft, "vllm": export_vllm, "gguf-lora": export_gguf_lora}
_MODELS = {"merged": export_merged, "gguf": export_gguf}


def export(
    source: Source, out: Path, form: Form = "peft", *, dtype: str | None = None, max_error: float = 0.0
) -> ExportReport:
    """Write a stack in one form, load it back and compare it.

    Args:
        dtype: to write in; unless given, that of the stack for whole models, and float32 (exact) for adapters.
        max_error: the relative error of the deltas that is accepted in an adapter, 0 to 1.

    Raises:
        InputError, IntegrityError: as the form's own function.
    """
    if form in _MODELS:
        return _MODELS[form](source, out, dtype=dtype)
    return _ADAPTERS[form](source, out, dtype=dtype or "float32", max_error=max_error)


def check_exportable(
    source: Source, out: Path, form: Form = "peft", *, dtype: str | None = None, max_error: float = 0.0
) -> None:
    """Refuse what no export can be made of, from files alone: to be called before any model is loaded.

    Arguments as for `export`; the `reference` of the source is not looked at.

    Raises:
        InputError: `out` is in use, an empty stack, folders that do not match it, an unknown dtype, an error above
            `max_error`, a 4-bit base, or an architecture or tokenizer that GGUF is not written for.
        IntegrityError: a damaged adapter.
    """
    check_dtype(source.stack.dtype)
    check_free(out)
    if form in WHOLE:
        if max_error:
            raise InputError(f"expected no max_error with {form}, found {max_error:g}: it is for adapters' deltas.")
        check_dtype(dtype or source.stack.dtype)
        check_whole(source, form)
        if form == "merged" or source.stack.adapters:
            source.require_adapters()
    else:
        fitted(source, form, dtype or "float32", max_error)
    if form == "gguf-lora":
        check_gguf_base(source)
    if form.startswith("gguf"):
        architecture = architecture_of(source.base_config)
        for module in source.combined.modules if source.stack.adapters else ():
            architecture.tensor_name(module)
    if form == "gguf":
        check_vocabulary(source.base_folder)
