"""The short README that goes with an export."""

from __future__ import annotations

from incremental_llm.handoff.check import LogitCheck
from incremental_llm.handoff.source import WHOLE, Form, Source

_LIBRARY = {"peft": "peft", "vllm": "peft", "merged": "transformers"}


def adapter_card(
    source: Source, kind: Form, rank: int, error: float, check: LogitCheck, commands: tuple[str, ...]
) -> str:
    """README.md of an exported adapter; `commands` with BASE, FOLDER and PARENT in them."""
    name, count = source.stack.base.name, len(source.stack.adapters)
    exact = "exactly" if error == 0 else f"up to a relative error of {error:.3g},"
    return _card(
        source,
        kind,
        f"A LoRA adapter for {name}",
        f"One adapter of rank {rank} that adds {exact} what a stack of {count} adapters adds",
        check,
        commands,
    )


def model_card(source: Source, kind: Form, dtype: str, check: LogitCheck, commands: tuple[str, ...]) -> str:
    """README.md of a whole model; `commands` with FOLDER in them."""
    name, count = source.stack.base.name, len(source.stack.adapters)
    return _card(
        source,
        kind,
        f"{name} with {count} adapters merged in",
        f"A whole model in {dtype}: the base and the deltas of its stack, summed in fp32 and rounded once to "
        f"{source.stack.dtype}, in which it was measured. Its licence is the base's",
        check,
        commands,
    )


def _card(source: Source, kind: Form, title: str, what: str, check: LogitCheck, commands: tuple[str, ...]) -> str:
    base = source.stack.base
    revision = f", revision `{source.revision}`" if source.revision else ""
    return f"""---
library_name: {_LIBRARY.get(kind, "gguf")}
tags: [{"" if kind in WHOLE else "lora, "}incremental_llm]
---
# {title}

{what}. Exported by incremental_llm from the base `{base.name}`{revision}, whose weights and config have the digest
`{base.digest}`{"" if kind in WHOLE else "; it belongs to that base and to no other"}.

Loaded back and compared with the stack on {check.probes} prompts ({check.tokens} tokens): largest difference of two
logits {check.max_abs_logit:.3g}, mean KL {check.mean_kl:.3g}, same most likely token on {100 * check.same_top:.1f} %.

{chr(10).join(f"    {command}" for command in commands)}

BASE is the folder or hub id of {base.name}, FOLDER this folder, PARENT the one that holds it. `lineage.json` says which
adapters are in it, `export.json` what was measured.
"""
