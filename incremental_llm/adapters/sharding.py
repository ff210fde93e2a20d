"""A model spread over processes: each holds a part of every frozen weight, and gathers a layer while it computes.

    told = sharding()               # what `accelerate launch` asked for; None: every process holds the whole model
    if told:
        told.spread(model)          # in place, before an adapter is added

The one design fact: only what is frozen is spread. The adapter is a hundredth of the model, so every process holds it
whole and its gradients are averaged as without sharding (DDP). What is computed on its factors, its optimizer, its
checkpoints and its file are therefore the same as on one device, and so is the result, bit for bit.

accelerate's own wrapping would spread the adapter as well, and only when training starts, after the whole model was on
every device to compute references. So its settings are read here and then taken from the environment.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from incremental_llm.errors import ConfigError

_USE_FSDP = "ACCELERATE_USE_FSDP"
_USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"


@dataclass(frozen=True)
class Sharding:
    """How the frozen weights are spread.

    `layers` are the classes of the parts that are gathered at a time (the architecture's own if empty), `zero` is the
    `zero_optimization` of DeepSpeed, which spreads them instead of FSDP2 if it is given.
    """

    layers: tuple[str, ...] = ()
    reshard_after_forward: bool = True
    zero: Mapping[str, Any] | None = None

    def spread(self, model: Any, device: torch.device) -> None:
        """Leave this process its part of a causal language model that lies on the CPU; the part goes to `device`.

        Raises:
            ConfigError: the model has none of the layers that are named.
        """
        if self.zero is not None:
            _spread_by_deepspeed(model, self.zero)
            return
        names = self.layers or tuple(model._no_split_modules or ())
        body, head = model.base_model, model.get_output_embeddings()
        layers = [module for module in body.modules() if type(module).__name__ in names]
        if not layers:
            raise ConfigError(
                f"fsdp_transformer_layer_cls_to_wrap: expected layers of {type(body).__name__}, found "
                f"{', '.join(names) or 'none named'}. Leave it out to take the architecture's own, or name their class."
            )
        mesh, again = _mesh(device.type), self.reshard_after_forward
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=again)
        tied = head.weight is model.get_input_embeddings().weight
        # The head is called outside of the body, and by terms of the loss, as often as a process has rows for them: it
        # stays gathered until its backward pass, or processes would wait for each other. Tied to the embedding, it is
        # whole on every process.
        if not tied:
            fully_shard(head, mesh=mesh)
        fully_shard(body, mesh=mesh, ignored_params={head.weight} if tied else set())
        model.to(device)


def sharding() -> Sharding | None:
    """What `accelerate launch` asked for by its config; read once, and from then on hidden from accelerate itself.

    To be called before accelerate's state is made. With one process there is nothing to spread.

    Raises:
        ConfigError: what this package does not do; nothing has been loaded yet.
    """
    told = _read()
    if isinstance(told, ConfigError):
        raise told
    return told


@functools.cache
def _read() -> Sharding | ConfigError | None:
    told: Sharding | ConfigError | None = None
    try:
        if os.environ.get(_USE_FSDP, "").lower() == "true":
            told = _fsdp2()
        elif os.environ.get(_USE_DEEPSPEED, "").lower() == "true":
            told = _zero3()
    except ConfigError as error:
        told = error  # kept: whoever asks again must not hear that nothing was asked for
    for name in (_USE_FSDP, _USE_DEEPSPEED):
        os.environ.pop(name, None)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return told if several or isinstance(told, ConfigError) else None


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: all of it, or its shard."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    part: torch.Tensor = getattr(tensor, "ds_tensor", tensor)
    return part


def settle(model: Any) -> None:
    """Let go of layers that are still gathered, so that a sharded model's parameters are its shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def average_adapter_only(model: Any) -> None:
    """Keep frozen parameters out of the gradient averaging (DDP) that `model` gets: they differ between processes."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)


@functools.cache
def _mesh(device: str) -> DeviceMesh:
    """All processes in a row; PEFT takes a mesh of this name for one that leaves layers their shapes."""
    return init_device_mesh(device, (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))


def _fsdp2() -> Sharding:
    version = os.environ.get("FSDP_VERSION", "1")
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    problems = []
    if version != "2":
        problems.append(f"fsdp_version: expected 2, found {version}")
    if policy != "TRANSFORMER_BASED_WRAP":
        problems.append(f"fsdp_auto_wrap_policy: expected TRANSFORMER_BASED_WRAP, found {policy}")
    off = {
        "FSDP_OFFLOAD_PARAMS": "layers are gathered from the devices",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "every process maps the same files into its memory and copies its part",
        "FSDP_ACTIVATION_CHECKPOINTING": "lower training.micro_batch to save memory",
    }
    problems += [
        f"{key.lower()}: expected false, found true ({why})"
        for key, why in off.items()
        if os.environ.get(key, "false").lower() == "true"
    ]
    _refuse(problems, "recipes/accelerate_fsdp2.yaml")
    plugin = FullyShardedDataParallelPlugin()
    return Sharding(tuple(plugin.transformer_cls_names_to_wrap or ()), bool(plugin.reshard_after_forward))


def _zero3() -> Sharding:
    plugin = DeepSpeedPlugin()
    zero: dict[str, Any] = plugin.deepspeed_config["zero_optimization"]
    problems = []
    if importlib.util.find_spec("deepspeed") is None:
        problems.append("expected the package deepspeed, found none: install it, or use recipes/accelerate_fsdp2.yaml")
    if plugin.zero_stage != 3:
        problems.append(
            f"zero_stage: expected 3, found {plugin.zero_stage} (the others spread what the optimizer holds, which an "
            "adapter has little of: use accelerate_config.yaml)"
        )
    problems += [
        f"{key}: expected none, found {found}"
        for key in ("offload_param_device", "offload_optimizer_device")
        if (found := getattr(plugin, key) or "none") != "none"
    ]
    _refuse(problems, "recipes/accelerate_zero3.yaml")
    return Sharding(zero={key: value for key, value in zero.items() if not key.startswith("offload")})


def _refuse(problems: list[str], example: str) -> None:
    if problems:
        raise ConfigError(f"accelerate's config: {'; '.join(problems)}. {example} works as it is.")


_ENGINES: list[Any] = []  # what DeepSpeed's hooks belong to


def _spread_by_deepspeed(model: Any, zero: Mapping[str, Any]) -> None:
    """ZeRO-3 of weights alone: an engine without an optimizer gathers and averages nothing. It has not been run."""
    import deepspeed

    bf16 = {"enabled": model.dtype == torch.bfloat16}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": dict(zero), "bf16": bf16}
    engine = deepspeed.initialize(model=model, config=config, dist_init_required=False)[0]
    # It foresees what a pass gathers from the order of the pass before, and counts on its own backward() to start anew.
    model.base_model.register_forward_pre_hook(lambda *_: engine.optimizer.get_param_coordinator().reset_step())
    _ENGINES.append(engine)
