"""A stack as a model that runs: the base with every adapter's delta in it.

Shapes: r rank, O outputs, I inputs of a linear layer.

Three ways, the first two chosen by what the base allows:

* fold (default): the deltas are summed in fp32 and added to the base weights in memory, rounded once. Steps then cost
  the same at any depth, and "adapters disabled" in PEFT and TRL *is* the previous policy.
* concat (4-bit base, or one that must stay bit-exact): nothing can be folded into 4-bit weights without losing nearly
  all of a delta, so the stack becomes one exact rank-sum pair that a forward hook adds to each layer's output. The hook
  belongs to the base layer,
  so "adapters disabled" is the previous policy here too.
* live (to compare): as concat, but every adapter by itself. A step gets slower with each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from incremental_llm.adapters.allocator import keep_freed_memory
from incremental_llm.adapters.lora import LoraAdapter, read_adapter
from incremental_llm.adapters.merge import concatenate, merge_into
from incremental_llm.adapters.sharding import Sharding
from incremental_llm.errors import BaseModelError, IntegrityError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def default_device() -> torch.device:
    """This process's CUDA device if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def native_dtype() -> str:
    """bfloat16 where this machine multiplies it natively, else float32: emulated, bf16 takes seven times as long."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch before 2.11: then fp32
        native = any(cpu.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def load_tokenizer(folder: Path) -> Any:
    """The base's tokenizer; it must have a chat template.

    Raises:
        BaseModelError: no chat template, so chats cannot be written as tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise BaseModelError(f"{folder.name}: the tokenizer has no chat template. Use an instruction-tuned base model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
    quantization: str = "none",
    to_train: bool = False,
    spread: Sharding | None = None,
) -> Any:
    """The base model alone, in evaluation mode, with no parameter trainable.

    Args:
        quantization: "none", or "nf4" for 4-bit weights through bitsandbytes (CPU and CUDA).
        to_train: take the attention whose backward is fast; without it, the one whose forward is.
        spread: leave this process its part of every weight; all processes are to load and to call the model together.
    """
    device = device or default_device()
    if device.type == "cpu":
        keep_freed_memory()
    # Training on a CPU replaces eager attention by blocks of its own (training/attention.py), or keeps it where an
    # architecture has scores of its own; sdpa generates 1.2x faster.
    eager = to_train and device.type == "cpu"
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager" if eager else "sdpa"}
    if quantization == "nf4":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
        options["device_map"] = {"": device}
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    model.requires_grad_(False)
    model.eval()
    if quantization != "none":
        _keep_one_kernel(model)
    elif spread:
        spread.spread(model, device)
    else:
        model.to(device)
    return model


def _keep_one_kernel(model: Any) -> None:
    """Never let a 4-bit layer repack its weights for CPU inference: that kernel has no gradient and other roundings."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_stack(
    base_folder: Path,
    adapter_folders: Sequence[Path],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
    quantization: str = "none",
    to_train: bool = False,
    frozen: str = "fold",
    spread: Sharding | None = None,
) -> Any:
    """Base and adapters (oldest first) as one plain model that computes what the stack computes.

    `frozen` says how: "fold", "concat" or "live"; over a 4-bit base, fold becomes concat. The rest is as in
    `load_base`. Nothing can be folded into weights that are spread: give the folded model (training/folded.py) as base.

    Raises:
        IntegrityError: an adapter that does not fit the base, or holds a non-finite number.
    """
    model = load_base(
        base_folder, dtype=dtype, device=device, quantization=quantization, to_train=to_train, spread=spread
    )
    adapters = [read_adapter(folder) for folder in adapter_folders]
    if not adapters:
        return model
    if quantization == "none" and frozen == "fold":
        merge_into(model, adapters)
        return model
    for adapter in adapters if frozen == "live" else [concatenate(adapters)]:
        attach(model, adapter)
    return model


def attach(model: Any, adapter: LoraAdapter) -> None:
    """Add a frozen adapter's output to each of its layers by a forward hook; the layers' own weights stay untouched."""
    layers = dict(model.named_modules())
    for name, (a_rI, b_Or) in adapter.modules.items():
        if name not in layers:
            raise IntegrityError(
                f"the adapter has a module {name!r} that the base has not: it belongs to another base."
            )
        layer = layers[name]
        device, dtype = layer.weight.device, torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32
        a, b = a_rI.to(device, dtype), (b_Or * adapter.scaling[name]).to(device, dtype)
        number = sum(name.startswith("frozen_A") for name, _ in layer.named_buffers(recurse=False))
        for side, factor in (("A", a), ("B", b)):  # buffers, so that digests of the frozen weights cover them
            layer.register_buffer(f"frozen_{side}{number}", factor, persistent=False)
        layer.register_forward_hook(_low_rank_hook(number))


def _low_rank_hook(number: int) -> Any:
    def add_delta(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        a_rI, b_Or = getattr(layer, f"frozen_A{number}"), getattr(layer, f"frozen_B{number}")
        x = inputs[0].to(a_rI.dtype)
        return output + ((x @ a_rI.T) @ b_Or.T).to(output.dtype)

    return add_delta
