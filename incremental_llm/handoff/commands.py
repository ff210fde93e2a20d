"""The commands that load or serve an export, ready to copy into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def peft_commands(base: str, revision: str | None, folder: str) -> tuple[str, ...]:
    """Base and adapter in Python."""
    of = f", revision={revision!r}" if revision else ""
    return (f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}{of}), {folder!r})",)


def vllm_commands(base: str, revision: str | None, folder: str, rank: int) -> tuple[str, ...]:
    """vLLM with the adapter from the start, under its folder's name, and vLLM that finds it when it is first asked for.

    The second is the plugin lora_filesystem_resolver: a request for model NAME loads NAME below the folder that
    VLLM_LORA_RESOLVER_CACHE_DIR names, where `base_model_name_or_path` of its adapter_config.json is, letter for
    letter, what `vllm serve` was given (vllm/plugins/lora_resolvers/filesystem_resolver.py).
    """
    adapter, name = Path(folder), shlex.quote(f"{Path(folder).name}={folder}")
    of = f" --revision {revision}" if revision else ""
    serve = f"vllm serve {shlex.quote(base)}{of} --enable-lora --max-lora-rank {rank}"
    settings = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true VLLM_PLUGINS=lora_filesystem_resolver"
    folders = f"VLLM_LORA_RESOLVER_CACHE_DIR={shlex.quote(str(adapter.parent))}"
    return (f"{serve} --lora-modules {name}", f"{settings} {folders} {serve}")


def merged_commands(folder: str) -> tuple[str, ...]:
    """A whole model in vLLM and in Python."""
    return (f"vllm serve {shlex.quote(folder)}", f"AutoModelForCausalLM.from_pretrained({folder!r})")


def gguf_lora_commands(base: str, file: str) -> tuple[str, ...]:
    """llama.cpp's server with the base as GGUF and the adapter."""
    return (f"llama-server -m {shlex.quote(base)} --lora {shlex.quote(file)}",)


def gguf_commands(file: str) -> tuple[str, ...]:
    """llama.cpp's server with a whole model, chatting by the template in the file."""
    return (f"llama-server -m {shlex.quote(file)} --jinja",)
