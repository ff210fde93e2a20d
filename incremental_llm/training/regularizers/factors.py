"""The layers that an adapter adapts, by the names that the base gives them."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer

_PREFIX = "base_model.model."


def lora_layers(model: Any, adapter: str = "default") -> dict[str, Any]:
    """Layers of a PEFT model with factors of `adapter`, by module name as in the base's state dict."""
    return {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }
