"""What a base has that a LoRA can adapt: its linear layers with weights of their own. No weights are loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from incremental_llm.errors import BaseModelError

_OF_A_MODULE = 512
"""Bytes that config and header may spend on a linear layer beside its name: two tensors, two patterns, one target."""
_OF_A_FILE = 64 * 1024


@dataclass(frozen=True)
class BaseLayers:
    """Shapes (outputs, inputs) of the linear layers by module name, and what else decides whether an adapter fits.

    `head` is the output layer, which "all-linear" leaves out; `vocabulary` the number of embeddings; `files` where the
    weights lie.
    """

    linear: Mapping[str, tuple[int, int]]
    head: str | None
    vocabulary: int
    files: Mapping[str, Path]

    @property
    def longest_text(self) -> int:
        """Bytes that neither an adapter's config nor its safetensors header can exceed for this base."""
        return _OF_A_FILE + sum(4 * len(name) + _OF_A_MODULE for name in self.linear)

    def weight_norm(self, module: str) -> float:
        """Frobenius norm of a layer's weight, which alone is read for it."""
        with safe_open(self.files[f"{module}.weight"], framework="pt") as weights:
            return float(torch.linalg.vector_norm(weights.get_tensor(f"{module}.weight"), dtype=torch.float64))


def base_layers(folder: Path) -> BaseLayers:
    """The linear layers of the base in `folder`, by its config on the meta device and its safetensors headers.

    A layer whose weight the base shares with another (a head tied to the embeddings) has none of its own in the files,
    and is not among them.

    Raises:
        BaseModelError: config or weights that cannot be read, or disagree.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
            )
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 - a safe_open is no dict
                    files[key], shapes[key] = path, tuple(weights.get_slice(key).get_shape())
    except Exception as error:  # transformers and safetensors raise a dozen unrelated types
        raise BaseModelError(f"base model folder {folder}: expected a model to compare with, found {error}.") from error
    linear: dict[str, tuple[int, int]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or (found := shapes.get(f"{name}.weight")) is None:
            continue
        if found != tuple(layer.weight.shape):
            raise BaseModelError(
                f"base model folder {folder}: expected {name} of shape {tuple(layer.weight.shape)} as in its config, "
                f"found {found}. Copy or download the model again."
            )
        linear[name] = (found[0], found[1])
    if not linear:
        raise BaseModelError(f"base model folder {folder}: expected linear layers with weights, found none.")
    output = model.get_output_embeddings()
    head = next((name for name, layer in model.named_modules() if layer is output), None)
    return BaseLayers(linear, head, model.get_input_embeddings().weight.shape[0], files)
