"""The short README and the commands that go with an export."""

from __future__ import annotations

import shlex

from incremental_llm.adapters.stack import Stack
from incremental_llm.handoff.check import LogitCheck

SERVED_NAME = "tuned"


def peft_command(base: str, folder: str, rank: int) -> str:
    """The shell command that serves base and adapter with vLLM, under the model name `tuned`."""
    adapter = shlex.quote(f"{SERVED_NAME}={folder}")
    return f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} --lora-modules {adapter}"


def merged_command(folder: str) -> str:
    """The shell command that serves a merged model with vLLM."""
    return f"vllm serve {shlex.quote(folder)}"


def peft_card(stack: Stack, rank: int, check: LogitCheck) -> str:
    """README.md of an exported adapter."""
    return f"""---
library_name: peft
tags: [lora, incremental_llm]
---
# A LoRA adapter for {stack.base.name}

One adapter of rank {rank} that adds exactly what a stack of {len(stack.adapters)} adapters adds, exported by
incremental_llm. It belongs to the base with digest `{stack.base.digest}` and to no other.
{_measured(check)}
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE", dtype="{stack.dtype}"), "FOLDER")
```

    {peft_command("BASE", "FOLDER", rank)}

BASE is the folder or hub id of {stack.base.name}, FOLDER this folder. `lineage.json` says which adapters are in it.
"""


def merged_card(stack: Stack, check: LogitCheck) -> str:
    """README.md of a merged model."""
    return f"""---
library_name: transformers
tags: [incremental_llm]
---
# {stack.base.name} with {len(stack.adapters)} adapters merged in

A whole model in {stack.dtype}, exported by incremental_llm: the base with digest `{stack.base.digest}` and the deltas
of its stack, summed in fp32 and rounded once. Its licence is the base's.
{_measured(check)}
    {merged_command("FOLDER")}

FOLDER is this folder. `lineage.json` says which adapters are in it.
"""


def _measured(check: LogitCheck) -> str:
    return f"""
Loaded back and compared with the stack on {check.probes} prompts ({check.tokens} tokens): largest difference of two
logits {check.max_abs_logit:.3g}, mean KL {check.mean_kl:.3g}, same most likely token on {100 * check.same_top:.1f} %.
"""
