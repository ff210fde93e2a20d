"""Adapters: a stack of LoRA adapters over one base, as data, as tensors, and as a model that runs.

    stack.py         which adapters over which base, by digest (no torch)
    chat_tokens.py   chats as token ids, the same for training and serving (no torch)
    lora.py          a PEFT folder as plain tensors, and back
    foreign/         adapters that somebody else made: judged, then written anew
    merge.py         several adapters into one, or into weights; exact, or of a smaller rank
    load.py          base + stack as a plain model: folded, or concatenated over a 4-bit base
    sharding.py      a frozen model spread over processes (FSDP2, ZeRO-3)

The one design fact: a stack is the sum of its deltas, computed once in fp32 and rounded once. No two adapters are ever
active in PEFT at the same time.
"""

from incremental_llm.adapters.stack import BaseRef, Stack, adapter_paths

__all__ = ["BaseRef", "Stack", "adapter_paths"]
