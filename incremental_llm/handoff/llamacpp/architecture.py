"""Which models can be written as GGUF, under what names, and in what order the rows of their weights lie.

    >>> architecture = architecture_of(config)          # of transformers        # doctest: +SKIP
    >>> architecture.tensor_name("model.layers.0.self_attn.q_proj")              # doctest: +SKIP
    'blk.0.attn_q'

Shapes: H heads, D numbers of a head, O = H·D outputs of a query or key layer.

The names are those of the package gguf, llama.cpp's own. Only what is tested against transformers' reader and
llama.cpp itself is written; anything else is refused by name, since a wrong order of rows still loads and answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gguf
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from incremental_llm.errors import InputError

# model_type of transformers: (architecture of GGUF, whether llama.cpp rotates neighbours of its queries and keys).
# llama.cpp/src/llama-model.cpp, llama_model_rope_type: NORM for llama, NEOX for qwen2.
_KNOWN = {"llama": (gguf.MODEL_ARCH.LLAMA, True), "qwen2": (gguf.MODEL_ARCH.QWEN2, False)}

_OTHER_WAY = "Export it as merged and convert that folder with llama.cpp's own convert_hf_to_gguf.py."


@dataclass(frozen=True)
class Architecture:
    """One model's place in GGUF; `config` is transformers'."""

    arch: gguf.MODEL_ARCH
    rotates_neighbours: bool
    config: Any

    @property
    def name(self) -> str:
        """What `general.architecture` says."""
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    @property
    def head_dim(self) -> int:
        """D."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def tensor_name(self, parameter: str) -> str:
        """The name in GGUF of a parameter or module, such as `model.layers.0.mlp.up_proj.weight`.

        Raises:
            InputError: GGUF has no place for it.
        """
        name = self._names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(
                f"{parameter}: expected a weight that GGUF has a name for in {self.name} models, found none. Export "
                "this stack as peft, vllm or merged."
            )
        return str(name)

    def row_order(self, parameter: str) -> torch.Tensor | None:
        """Where each row of a weight (O x I), bias (O) or B (O x R) comes from; None where rows keep their order.

        transformers has the first halves of a head's rotated pairs before the second ones, llama.cpp each pair side
        by side.
        """
        heads = self._heads_of(parameter)
        if heads is None:
            return None
        halves_HD = torch.arange(heads * self.head_dim).view(heads, 2, self.head_dim // 2)
        return halves_HD.transpose(1, 2).flatten()

    def rope_divisors(self) -> torch.Tensor | None:
        """By what each rotation's frequency is divided (D / 2), as Llama 3.1 and later do it; None where by nothing."""
        if _rope_type(self.config) != "llama3":
            return None
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, device=torch.device("cpu"))
        plain = self.config.rope_parameters["rope_theta"] ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        divisors: torch.Tensor = plain / scaled
        return divisors

    def _heads_of(self, parameter: str) -> int | None:
        """H of a query or key layer whose rows move."""
        if not self.rotates_neighbours:
            return None
        layer = parameter.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}.get(layer)
        return None if heads is None else int(heads)

    @cached_property
    def _names(self) -> Any:
        return gguf.get_tensor_name_map(self.arch, self.config.num_hidden_layers)


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's config.

    Raises:
        InputError: one that is not written, or one whose settings GGUF's reader in llama.cpp would not follow.
    """
    if config.model_type not in _KNOWN:
        raise InputError(
            f"expected a model of type {' or '.join(_KNOWN)} for GGUF, found {config.model_type!r}. {_OTHER_WAY}"
        )
    for setting, (found, expected) in _settings(config).items():
        if found != expected:
            raise InputError(
                f"expected a {config.model_type} model with {setting} = {expected!r} for GGUF, found {found!r}. "
                + _OTHER_WAY
            )
    return Architecture(*_KNOWN[config.model_type], config)


def _rope_type(config: Any) -> str:
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def _settings(config: Any) -> dict[str, tuple[Any, Any]]:
    """What must hold, by the name of the setting: (found, expected)."""
    found: dict[str, tuple[Any, Any]] = {"hidden_act": (config.hidden_act, "silu")}
    if config.model_type != "llama" or _rope_type(config) != "llama3":
        found["rope_type"] = (_rope_type(config), "default")
    if config.model_type == "llama":
        found["attention_bias"] = (config.attention_bias, False)
        found["mlp_bias"] = (config.mlp_bias, False)
    else:
        found["use_sliding_window"] = (config.use_sliding_window, False)
    return found


def write_hyperparameters(writer: Any, architecture: Architecture) -> None:
    """The settings that llama.cpp builds the model from."""
    config = architecture.config
    settings: dict[Callable[[Any], None], Any] = {
        writer.add_vocab_size: config.vocab_size,
        writer.add_context_length: config.max_position_embeddings,
        writer.add_embedding_length: config.hidden_size,
        writer.add_block_count: config.num_hidden_layers,
        writer.add_feed_forward_length: config.intermediate_size,
        writer.add_head_count: config.num_attention_heads,
        writer.add_head_count_kv: config.num_key_value_heads,
        writer.add_layer_norm_rms_eps: config.rms_norm_eps,
        writer.add_rope_freq_base: config.rope_parameters["rope_theta"],
        writer.add_rope_dimension_count: architecture.head_dim,
        writer.add_key_length: architecture.head_dim,
        writer.add_value_length: architecture.head_dim,
    }
    for add, value in settings.items():
        add(value)
